"""Numbers and pictures of a run in TensorBoard, MLflow's store of files and a stand-in for Weights & Biases."""

import sys
import types

import cv2
import numpy as np
import pytest
import yaml

from engine.run_logs import LogOptions, TensorBoardLog, open_logs, tell
from utils.errors import UserError

ROWS = [{"epoch": 1, "train/box": 0.5, "metrics/mAP_0.5:0.95": 0.25}, {"epoch": 2, "train/box": 0.25}]


@pytest.fixture
def folder(tmp_path):
    run = tmp_path / "runs/train/exp"
    run.mkdir(parents=True)
    cv2.imwrite(str(run / "results.png"), np.full((20, 30, 3), (0, 0, 255), np.uint8))
    (run / "best.pt").write_bytes(b"weights")
    return run


def feed(log, folder):
    for row in ROWS:
        log.numbers(row)
    log.picture(folder / "results.png", 2)
    log.finish(folder / "best.pt")


def test_tensorboard_has_numbers_and_pictures(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    feed(TensorBoardLog(folder, 0), folder)
    events = EventAccumulator(str(folder)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/box")] == [(1, 0.5), (2, 0.25)]
    (image,) = events.Images("results")
    picture = cv2.imdecode(np.frombuffer(image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    assert (image.step, picture.shape, picture[0, 0].tolist()) == (2, (20, 30, 3), [0, 0, 255])


def test_mlflow_keeps_options_numbers_pictures_and_weights(folder, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed: pip install -r requirements-loggers.txt")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    options = {"log": "mlflow", "lr0": 0.01, "img_size": [320]}
    log = open_logs(folder, options, 0)[1]
    log.numbers(ROWS[0])
    log = open_logs(folder, options, 1)[1]  # a resumed run goes on in the same one
    log.numbers(ROWS[1])
    log.picture(folder / "results.png", 2)
    log.finish(folder / "best.pt")
    client = mlflow.MlflowClient(tracking_uri=(folder.parent / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("train")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "exp" and run.info.status == "FINISHED" and run.data.params["lr0"] == "0.01"
    found = [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "train/box")]
    assert found == [(1, 0.5), (2, 0.25)] and run.data.metrics["metrics/mAP_0.5-0.95"] == 0.25
    assert [one.path for one in client.list_artifacts(run.info.run_id, "pictures")] == ["pictures/results.png"]
    assert [one.path for one in client.list_artifacts(run.info.run_id, "weights")] == ["weights/best.pt"]


class FakeWandb(types.ModuleType):
    """As much of the package as is used; notes what it is told."""

    def __init__(self):
        super().__init__("wandb")
        self.told = []

    def init(self, **given):
        self.told.append(("init", given["mode"], given["name"], given["id"], given["config"]["lr0"]))
        run = types.SimpleNamespace(id=given["id"] or "abc")
        run.log = lambda values, step: self.told.append((step, values))
        run.log_artifact = lambda artifact: self.told.append(("artifact", artifact.files))
        run.finish = lambda: self.told.append("finish")
        return run

    def Image(self, path):  # noqa: N802
        return f"picture of {path}"

    def Artifact(self, name, type):  # noqa: A002, N802
        artifact = types.SimpleNamespace(files=[])
        artifact.add_file = artifact.files.append
        return artifact


def test_wandb_is_told_offline_and_a_resume_goes_on_there(folder, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    options = {"log": "wandb", "lr0": 0.01}
    feed(open_logs(folder, options, 0)[1], folder)
    assert wandb.told == [
        ("init", "offline", "exp", None, 0.01),
        (1, ROWS[0]),
        (2, ROWS[1]),
        (2, {"results": f"picture of {folder / 'results.png'}"}),
        ("artifact", [str(folder / "best.pt")]),
        "finish",
    ]
    assert yaml.safe_load((folder / "loggers.yaml").read_text()) == {"wandb": "abc"}
    open_logs(folder, options, 2)
    assert wandb.told[-1] == ("init", "offline", "exp", "abc", 0.01)


def test_what_is_missing_or_unknown_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"--log mlflow: needs the package mlflow; pip install -r requirements-loggers"):
        LogOptions("mlflow")
    with pytest.raises(ValueError, match="'comet' is none of wandb, mlflow"):
        LogOptions("comet")
    assert LogOptions("").services == ()


def test_a_service_that_does_not_begin_is_one_line(folder, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delattr(FakeWandb, "init")
    with pytest.raises(UserError, match=r"^--log wandb: .*no attribute 'init'; leave it out, or resume with --log ''$"):
        open_logs(folder, {"log": "wandb"}, 0)


def test_a_service_that_fails_ends_no_training(capsys):
    class Gone:
        def numbers(self, row):
            raise ConnectionError("no server\nand more")

    class Notes(list):
        def numbers(self, row):
            self.append(row)

    notes = Notes()
    logs = [Gone(), notes]
    for row in ROWS:
        tell(logs, lambda log, row=row: log.numbers(row))
    assert logs == [notes] and notes == ROWS
    assert "".join(capsys.readouterr()).count("Gone gets nothing more of this run: no server\n") == 1
