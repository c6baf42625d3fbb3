"""Forecasts of held-out people: the model, small networks and linear methods."""
