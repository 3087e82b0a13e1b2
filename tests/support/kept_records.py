"""A record that was kept in a folder."""

from made_records import run_identity, run_record
from rmsnorm_lab.experiments.store import RunStore

IDENTITY = run_identity("rms", 3)


def put(folder, seed=3, bits=2.25):
    record = run_record("rms", seed, bits)
    RunStore(folder).put(record)
    return record


def the_file(folder):
    (path,) = folder.glob("*.jsonl")
    return path
