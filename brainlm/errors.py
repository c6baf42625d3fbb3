"""The two ways things go wrong: the user can fix it, or one recording cannot be used."""


class BrainLMError(Exception):
    """A problem the user can fix.

    The message names the file, what was expected, what was found and what to do; the command
    line prints it as one line (a traceback only with ``--debug``).
    """


class RecordingError(BrainLMError):
    """One recording cannot be used; it becomes a row with a status and a reason.

    Parameters
    ----------
    status : str
        One of :data:`STATUSES` other than ``"ok"``.
    reason : str
        What was expected and what was found, with units.
    **figures
        What is known all the same (``duration_s``, ``repetition_time_s``); kept in the row.
    """

    def __init__(self, status: str, reason: str, **figures: float):
        if status not in STATUSES or status == "ok":
            raise ValueError(f"unknown failure status {status!r}; one of {sorted(STATUSES)}")
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.figures = figures


#: What can become of a recording, and what each word means.
STATUSES = {
    "ok": "usable",
    "too_short": "fewer usable seconds than preprocess.min_duration_s",
    "unreadable": "the file cannot be read to its end, or is not a 4-D NIfTI image",
    "bad_metadata": "repetition time, units, orientation or sidecar missing or contradictory",
    "bad_data": "NaN, constant or empty volumes, or nothing that looks like a brain",
    "motion_failed": "motion correction did not converge",
    "registration_failed": "normalisation to the template did not pass its checks",
    "denoise_failed": "ICA or confound regression could not be fitted",
    "parcellation_failed": "too few parcels lie inside the field of view",
    "timeout": "took longer than preprocess.time_limit_min",
    "missing_input": "a file of an earlier step, of the atlas or a program is missing or damaged",
    "excluded": "named in the cohort's exclusion table",
    "crashed": "an unexpected error; the log has the traceback",
}
