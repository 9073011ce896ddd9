import msgspec
import pytest

from ecrec.errors import ConfigurationError
from ecrec.protocol.placement import OPTIMIZERS
from ecrec.train import options
from ecrec.train.options import DENSE_LEARNING_RATES, LEARNING_RATES, TrainOptions, check_options, parse_sizes


def test_the_defaults_are_fine():
    assert check_options(TrainOptions()) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"shards": 0}, "--shards 0"),
        ({"shards": 17, "code": "4+1"}, "--shards 17"),
        ({"shards": 10, "groups": 3}, "--shards 10 --groups 3 --code 4\\+1: .* multiple of 3"),
        ({"shards": 10, "groups": 0}, "0 groups: expected 1"),
        ({"shards": 8, "groups": 2}, "2 groups of 4 shards: code 4\\+1"),
        ({"code": "4"}, "expected K\\+R"),
        ({"code": "5+1"}, "k \\+ r = 6 different shards.*has 5"),
        ({"shards": 2}, "--shards 2 --code 4\\+1"),
        ({"workers": 0}, "--workers 0"),
        ({"steps": 0}, "--steps 0"),
        ({"epochs": 0}, "--epochs 0"),
        ({"batch": -1}, "--batch -1"),
        ({"dim": 0}, "--dim 0"),
        ({"rows": 0}, "--rows 0"),
        ({"prefetch": -1}, "--prefetch -1"),
        ({"spares": -1}, "--spares -1"),
        ({"seed": -1}, "--seed -1"),
        ({"test_fraction": 1.0}, "--test-fraction 1.0"),
        ({"optimizer": "lion"}, "--optimizer 'lion'.*rowwise-adagrad"),
        ({"dense_optimizer": "lion"}, "--dense-optimizer"),
        ({"lr": 0.0}, "--lr 0.0"),
        ({"dense_lr": float("nan")}, "--dense-lr nan"),
        ({"transport": "carrier-pigeon"}, "--transport"),
        ({"on_data_loss": "restore"}, "--on-data-loss restore: give --checkpoint"),
        ({"on_data_loss": "restore", "checkpoint": "x", "workers": 2, "sync": True}, "restore: with --sync no worker"),
        ({"resume": "x", "workers": 2, "sync": True}, "--resume: with --sync no worker leases"),
        ({"on_data_loss": "pray"}, "--on-data-loss 'pray': expected one of stop, reinitialise, restore"),
        ({"heartbeat_timeout_ms": 1}, "--heartbeat-timeout-ms 1"),
        ({"link_timeout_ms": 800}, "shard; expected more than --heartbeat-timeout-ms, 800"),
        ({"kills": ("ps:9@1",)}, "no shard 9"),
        ({"seconds": 0.0}, "--seconds 0.0"),
        ({"seconds": 5.0, "sync": True, "workers": 2}, "--seconds with --sync"),
        ({"chaos_kill_every_s": 5.0, "code": "4+0"}, "--chaos-kill-every: code 4.0 tolerates no death"),
        ({"chaos_kill_every_s": 5.0, "kills": ("ps:1@1",)}, "give one of them"),
        ({"kills": ("worker:1@1",)}, "no worker 1"),
        ({"kills": ("worker:1@1",), "workers": 2, "sync": True}, "with --sync no worker may die"),
        ({"lease_timeout_ms": 999}, "--lease-timeout-ms 999: must be at least 1000"),
        ({"kills": ("ps:1@9",), "steps": 5}, "only 5 steps"),
        ({"data": ("/nonexistent/day_0.gz",)}, "--data /nonexistent/day_0.gz: No such file"),
        ({"report": "/nonexistent/report.json"}, "--report"),
        ({"metrics": "/nonexistent/metrics.jsonl"}, "cannot be written: there is no directory /nonexistent: make"),
        ({"trace": "/"}, "--trace /: cannot be written: it is a directory, expected the name of a file"),
        ({"rows": 1}, "--rows 1: must be at least 2"),
        ({"trace_steps": 0}, "--trace-steps 0: must be at least 1"),
        ({"trace_steps": 10_001}, "--trace-steps 10001: must be at most 10000"),
        ({"tensorboard": "/dev/null/board"}, "--tensorboard /dev/null/board: (needs TensorBoard|Not a directory)"),
        ({"metrics": "metrics.jsonl", "on": "ray"}, "--metrics with --on ray: each worker would write it on a node"),
    ],
)
def test_what_cannot_be_is_named(given, words):
    with pytest.raises(ConfigurationError, match=words):
        check_options(TrainOptions(**given))


def test_an_empty_data_file_and_a_directory_are_refused(tmp_path):
    empty = tmp_path / "empty.tsv"
    empty.touch()
    with pytest.raises(ConfigurationError, match="the file is empty"):
        check_options(TrainOptions(data=(str(empty),)))
    with pytest.raises(ConfigurationError, match="directory"):
        check_options(TrainOptions(data=(str(tmp_path),)))
    with pytest.raises(ConfigurationError, match="cannot be written"):
        check_options(TrainOptions(report=str(tmp_path)))


def test_a_used_run_directory_is_refused(tmp_path):
    (tmp_path / "scheduler.sqlite").touch()
    with pytest.raises(ConfigurationError, match="another run"):
        check_options(TrainOptions(run_dir=str(tmp_path)))


def test_a_kill_that_the_code_does_not_stand_is_a_warning():
    (warning,) = check_options(TrainOptions(code="4+0", kills=("ps:1@3",)))
    assert "r = 0" in warning


def test_groups_are_dealt_and_spares_are_r_for_each():
    options = TrainOptions(shards=10, groups=2, code="3+2")
    assert check_options(options) == []
    assert (options.dealt.count, options.dealt.n, options.spare_count) == (2, 5, 4)
    assert TrainOptions(shards=18).dealt.count == 2
    assert TrainOptions(shards=18, spares=1).spare_count == 1
    (warning,) = check_options(TrainOptions(shards=10, groups=2, kills=("ps:6@3", "ps:8@3", "ps:1@3")))
    assert "2 shards of group 1" in warning


def test_layer_sizes():
    assert parse_sizes("--top-mlp", "512, 256") == (512, 256)
    for text in ("", "512,", "a", "0", "-3"):
        with pytest.raises(ConfigurationError, match="--top-mlp"):
            parse_sizes("--top-mlp", text)


def test_every_optimizer_has_a_default_learning_rate():
    assert list(LEARNING_RATES) == list(OPTIMIZERS)
    for name, rate in LEARNING_RATES.items():
        assert check_options(TrainOptions(optimizer=name)) == []
        assert TrainOptions(optimizer=name).learning_rate == rate
    for name, rate in DENSE_LEARNING_RATES.items():
        assert check_options(TrainOptions(dense_optimizer=name)) == []
        assert TrainOptions(dense_optimizer=name).dense_learning_rate == rate


def test_options_survive_json():
    options = TrainOptions(kills=("ps:1@3",), steps=5)
    assert msgspec.json.decode(msgspec.json.encode(options), type=TrainOptions) == options


def test_files_out_of_order_are_said(tmp_path):
    row = "\t".join(["1", *["3"] * 13, *["0a0b0c0d"] * 26]) + "\n"
    files = []
    for name in ("day_1", "day_10", "day_9"):  # as a shell sorts them
        (tmp_path / name).write_text(row)
        files.append(str(tmp_path / name))
    (warning,) = check_options(TrainOptions(data=tuple(files)))
    assert warning.endswith(f"Numbered in order they are: {files[0]}, {files[2]}, {files[1]}")
    assert check_options(TrainOptions(data=(files[0], files[2], files[1]))) == []


def test_tensorboard_that_is_missing_is_named_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(options, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigurationError, match=r'--tensorboard .*: needs TensorBoard: pip install "ecrec\[tensorboard\]"'
    ):
        check_options(TrainOptions(tensorboard=str(tmp_path / "board")))
    assert not (tmp_path / "board").exists()


def test_the_longest_trace_is_that_of_a_session():
    spans = pytest.importorskip("ecrec.training.spans", exc_type=ImportError)
    assert options.TRACE_STEPS_MAX == spans.STEPS_MAX
