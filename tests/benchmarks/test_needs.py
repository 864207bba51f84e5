"""What a training needs: against torch's count of operations, against arithmetic by hand, and against the pages."""

import re
from pathlib import Path

import pytest

from benchmarks import needs
from benchmarks._needs import figures
from benchmarks._needs.tables import rate_table, set_table

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.torch
@pytest.mark.commands
def test_the_operations_of_a_step_and_the_parameters_are_those_that_torch_counts() -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from relic.codec.model import Architecture, build_model

    model = build_model(Architecture(figures.CHANNELS, "all"))
    with FlopCounterMode(display=False) as counted:
        coded = model(torch.rand(1, 3, figures.SIDE, figures.SIDE))
        (coded["x_hat"].mean() - coded["likelihoods"]["y"].log().mean()).backward()
    assert counted.get_total_flops() / 1e9 == pytest.approx(figures.step_gflop(), rel=0.01)
    assert sum(parameter.numel() for parameter in model.parameters()) == figures.PARAMETERS


def test_the_tables_of_the_page_are_made_by_the_command(tmp_path: Path) -> None:
    assert needs.main(["--markdown", str(tmp_path / "needs.md")]) == 0
    assert (tmp_path / "needs.md").read_text() == f"{rate_table()}\n\n{set_table()}\n"
    page = (DOCS / "scale.md").read_text()
    assert rate_table() in page
    assert set_table() in page


def test_the_figures_are_about_those_of_the_pages() -> None:
    """Measured again, they may differ a little; then the tables need not be made anew."""
    measured, scale = (DOCS / "performance.md").read_text(), (DOCS / "scale.md").read_text()

    def found(pattern: str, page: str) -> float:
        match = re.search(pattern, page)
        assert match, pattern
        return float(match[1].replace(",", ""))

    jpg_us = 2e6 / found(r"\| jpg \| +([\d,]+) \|", measured)
    png_us = found(r"ISA-L level 1\*\* .*\| \*\*([\d,]+) us\*\* \|\n", measured)
    png_bytes = found(r"ISA-L level 1\*\* \| \*\*([\d.]+) %", measured) / 100 * figures.SIDE**2 * 3
    small_us = found(r"a read of 25 kB of a shard \| \d+ to (\d+) us", scale)
    raw_us = found(r"a raw crop of 150 kB in a batch.*\| \d+ to (\d+) us", scale)
    stored = figures.STORED
    assert stored["jpg"].disk_us == pytest.approx(jpg_us, rel=0.25)
    assert stored["png"].disk_us == pytest.approx(png_us + stored["raw"].disk_us, rel=0.25)
    assert stored["png"].bytes == pytest.approx(png_bytes, rel=0.02)
    assert stored["jpg"].store_us == pytest.approx(small_us + jpg_us, rel=0.25)
    assert stored["raw"].store_us == pytest.approx(raw_us, rel=0.25)


def test_the_rows_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--gpus 64 --gpu_images_per_second 3000 --encoding raw --images 1e9 --cached 0.5"
    assert needs.main(flags.split()) == 0
    rows = [re.split(r"\s{2,}", line.strip())[:2] for line in capsys.readouterr().out.splitlines()]
    assert dict(rows) == {
        "machines": "8",
        "images/s": "192,000",
        "an epoch": "1.45 h",  # 1e9 / 192,000 / 3600
        "the set": "151.6 TB",
        "read": "29.1 GB/s",  # 192,000 x 151,552
        "cores, set on disks": "69",  # 64 + 5.4
        "cores, set in a store": "90",  # 64 + 2.7 + 23.8
        "from a store": "14.55 GB/s",
        "requests": "96,000/s",
        "requests in flight": "2,880",
        "partitions of a bucket": "18",  # 17.5
        "requests of an epoch": "200.00 USD",
        "or all shards, once": "0.64 USD",  # 8 x 200,000
        "memory of a machine": "33.93 GB",  # 8 x (4 + 0.0963 + 0.14 + 0.0051)
        "the same, no window": "153.9 GB",  # 8 x (4 + 0.0963 + 0.14 + 15)
        "gradients, a machine": "1.087 GB/s",  # 2 x 11.6 MB x 46.9 steps/s
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--cached 1.5", "--cached 1.5: must be from 0 to 1"),
        ("--gpus 0", "--gpus 0: must be 1 or more"),
        ("--markdown nowhere/x.md", "--markdown nowhere/x.md: no folder nowhere"),
    ],
)
def test_what_is_refused(capsys: pytest.CaptureFixture[str], flags: str, message: str) -> None:
    try:
        code: object = needs.main(flags.split())
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert capsys.readouterr().err.endswith(f"error: {message}\n")
