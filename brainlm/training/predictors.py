"""The predictors of hidden values that are compared with every model, and what they are called.

Computed by :func:`brainlm.training.masked_r2.predict_hidden`; the VAR, which predicts nothing but
the future, by the evaluation. A model that does not beat the
Gaussian ones knows less than a covariance matrix of its own training participants.
"""

from __future__ import annotations

#: column -> words
PREDICTORS = {
    "gaussian_own": "the Gaussian of the window's own covariance",
    "gaussian_time": "the Gaussian in space and time",
    "gaussian": "the Gaussian of the training covariance",
    "var": "a vector autoregression",
    "space": "the mean of the visible parcels",
    "linear": "linear interpolation in time",
    "zero": "predicting zero",
}
#: what each is, for captions
EXPLAINED = (
    "'gaussian' is the expectation of the hidden parcels given the visible ones of the same "
    "moment, under the covariance of the training participants; 'gaussian_own' the same under the "
    "window's own covariance, found by expectation-maximisation from there; 'gaussian_time' given "
    "all visible values of the window, under covariance in space times autocorrelation; 'var', "
    "of future masks, a low-rank vector autoregression fitted on at most 1,000 training "
    "recordings; 'space' is the mean of the parcels visible at that moment; 'linear' joins the "
    "visible points of the same parcel; 'zero' is the training median."
)
