"""Forecasts of held-out participants: the model, small networks and linear methods."""
