"""Claims: the living are never taken for dead, the dead always are, and nothing of an ended one stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from registry.claims import claim, living, orphans

HOLDER = """\
import sys
from pathlib import Path
from registry.claims import claim
held = claim(Path(sys.argv[1]), "other", {"run": "other"})
print("held", flush=True)
sys.stdin.read()
"""


def test_a_claim_lives_as_long_as_its_process_however_that_ends(tmp_path: Path) -> None:
    pipe = subprocess.PIPE
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdin=pipe, stdout=pipe)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    assert living(tmp_path) == [{"run": "other"}] and list(orphans(tmp_path)) == []
    holder.kill()
    holder.wait()
    assert living(tmp_path) == []
    (left,) = orphans(tmp_path)
    assert left.note == {"run": "other"}
    left.end()
    assert list(orphans(tmp_path)) == [] and list((tmp_path / "claims").iterdir()) == []


def test_what_is_still_to_be_told_stays_for_the_next(tmp_path: Path) -> None:
    claim(tmp_path, "mine", {"run": "mine"}).end({"run": "mine", "status": "FINISHED"})
    (left,) = orphans(tmp_path)
    assert left.note == {"run": "mine", "status": "FINISHED"}
    assert list(orphans(tmp_path)) == []  # it is in hand
    left.end()


def test_a_note_that_cannot_be_read_goes(tmp_path: Path) -> None:
    claim(tmp_path, "mine", {}).end({"run": "mine"})
    (tmp_path / "claims" / "mine.json").write_text('{"run": ')
    assert list(orphans(tmp_path)) == [] and list((tmp_path / "claims").iterdir()) == []
