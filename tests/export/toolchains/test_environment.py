"""Environments of toolchains: complete or absent."""

from pathlib import Path

import pytest

from export.install_toolchain import main
from export.toolchains import environment
from export.toolchains.environment import environment_folder, find_python, install
from relic.errors import InputError

pytestmark = pytest.mark.commands


@pytest.fixture
def pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The requirements of `openvino`, for the test to write."""
    monkeypatch.setattr(environment, "FOLDER", tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return tmp_path / "openvino.txt"


def test_an_environment_is_made_once(pins: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pins.write_text("# nothing to install\n")
    assert main(["--toolchain", "openvino"]) == 0
    assert "Apache License 2.0" in capfd.readouterr().out
    assert find_python("openvino").is_file()
    marker = environment_folder("openvino") / "marker"
    marker.touch()
    assert install("openvino") == marker.parent and marker.exists()
    pins.write_text("# other pins\n")
    with pytest.raises(InputError, match="is not installed"):
        find_python("openvino")


def test_an_installation_that_fails_leaves_nothing(pins: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pins.write_text("no-such-package-of-relic==1.0\n")
    assert main(["--toolchain", "openvino"]) == 1
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and "--toolchain openvino: pip could not install openvino.txt: ERROR" in error
    assert not environment_folder("openvino").exists()
