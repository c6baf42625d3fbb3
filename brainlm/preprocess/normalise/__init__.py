"""From template space to a recording: the tissue fit, the bend, and what is refused."""
