import pytest

from roarlib.study import files


def test_atomic_writing_leaves_the_old_file_and_no_part_when_it_fails(tmp_path, monkeypatch):
    file = tmp_path / "a" / "x.txt"
    files.write_atomically(file, "old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left on device: .*x.txt"):
        files.write_atomically(file, "new")
    assert file.read_text() == "old" and list(file.parent.iterdir()) == [file]
