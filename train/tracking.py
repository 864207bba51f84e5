"""Where a run's numbers go: `metrics.jsonl`, the log, and W&B when asked. A W&B failure never ends a run."""

import json
import logging
from pathlib import Path
from typing import Any

from relic.files import atomic_write

log = logging.getLogger(__name__)


class Tracker:
    """Rank 0's record of a run. Lines of `metrics.jsonl` past the step it resumes from are cut."""

    def __init__(
        self, folder: Path, *, config: dict[str, Any], use_wandb: bool, wandb_id: str | None, step: int
    ) -> None:
        self._path = folder / "metrics.jsonl"
        self._cut(step)
        self._wandb: Any = None
        self.wandb_id = wandb_id
        if use_wandb:
            self._start_wandb(config)

    def write(self, event: str, **values: Any) -> None:
        """Append a line: `event` (train, validate, start, ...), `step`, `epoch`, `images_seen` and more."""
        with self._path.open("a") as file:
            file.write(json.dumps({"event": event, **values}) + "\n")
        numbers = {f"{event}/{name}": value for name, value in values.items() if isinstance(value, (int, float))}
        self._to_wandb(lambda: self._wandb.log({**numbers, "step": values.get("step")}))

    def write_images(self, name: str, paths: list[Path], step: int) -> None:
        """Show reconstructions in W&B."""
        self._to_wandb(lambda: self._wandb.log({name: [_wandb_image(path) for path in paths], "step": step}))

    def close(self) -> None:
        self._to_wandb(lambda: self._wandb.finish())

    def _cut(self, step: int) -> None:
        if not self._path.exists():
            return
        kept = [line for line in self._path.read_text().splitlines() if _step_of(line) <= step] if step else []
        with atomic_write(self._path, "w") as file:
            file.writelines(line + "\n" for line in kept)

    def _start_wandb(self, config: dict[str, Any]) -> None:
        try:
            import wandb

            self._wandb = wandb.init(project="relic", id=self.wandb_id, resume="allow", config=config)
            self.wandb_id = self._wandb.id
            # Not W&B's own count, which only rises: it would drop the steps that a resumed run repeats.
            self._wandb.define_metric("*", step_metric="step")
        except Exception as error:
            log.warning("W&B is off for this run: %s", error)

    def _to_wandb(self, call: Any) -> None:
        if self._wandb is None:
            return
        try:
            call()
        except Exception as error:
            log.warning("W&B is off from here on: %s", error)
            self._wandb = None


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line).get("step", 0))
    except ValueError:
        return float("inf")  # a line cut by a kill


def _wandb_image(path: Path) -> Any:
    import wandb

    return wandb.Image(str(path), caption=path.stem)
