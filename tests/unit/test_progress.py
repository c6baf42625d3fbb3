"""The bottom row of a terminal, or plain lines."""

import io
import os

from brainlm.progress import Count, Progress, Record, read_record


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_keeps_its_bottom_row_for_the_progress(monkeypatch):
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_, **__: os.terminal_size((20, 10)))
    terminal = Terminal()
    progress = Progress(lambda: "chunks 1/2", terminal)
    progress.show("chunks 1/2 and much more than fits")
    said = terminal.getvalue()
    assert "\x1b[1;9r" in said  # rows 1 to 9 scroll
    assert "\x1b[10;1H\x1b[2K\x1b[7mchunks 1/2 and much \x1b[m" in said
    progress.show("chunks 2/2")
    assert terminal.getvalue().count("\x1b[1;9r") == 1
    progress.start()
    progress.stop()
    progress.stop()
    assert terminal.getvalue().endswith("\x1b7\x1b[r\x1b[10;1H\x1b[2K\x1b8")


def test_a_log_gets_plain_lines():
    log = io.StringIO()
    progress = Progress(lambda: "chunks 1/2", log)
    progress.start()
    progress.stop()
    assert log.getvalue() == "progress: chunks 1/2\n"


def test_a_count_tells_every_few_seconds_and_at_the_end(tmp_path, monkeypatch):
    clock = iter([0.0, 1.0, 4.0, 5.0, 8.0])
    monkeypatch.setattr("brainlm.progress.time.monotonic", lambda: next(clock))
    said: list[str] = []
    count = Count("embed", 40, tmp_path / "logs/embed.jsonl", said.append)
    assert read_record(count.path, 0.0) == Record("embed", 0, 40, "0/40 recordings")
    for done in (5, 20, 25, 40):
        count(done)
    assert said == ["embed: 20/40 recordings, 5/s, ETA 0:04", "embed: 40/40 recordings, 5/s"]
    assert read_record(count.path, 0.0).done == 40
