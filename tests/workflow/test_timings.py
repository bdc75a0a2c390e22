"""What the jobs of a study took and ran on, read from Snakemake's benchmark files and the jobs' logs."""

import pandas as pd
from collect_timings import collect_timings, read_hardware, read_timings

from onejump.files.tables import read_table
from onejump.models.devices import DEVICE_LINE


def write_benchmark(path, seconds, max_rss):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"s\th:m:s\tmax_rss\tmax_vms\n{seconds}\t0:00:01\t{max_rss}\t900.0\n")


def test_timings_are_summed_over_the_jobs_of_a_rule(tmp_path):
    write_benchmark(tmp_path / "summarise.tsv", 3.5, 423.0)
    write_benchmark(tmp_path / "fit_jump" / "m" / "a.tsv", 2.0, 100.0)
    write_benchmark(tmp_path / "fit_jump" / "m" / "b.tsv", 4.5, 80.0)
    write_benchmark(tmp_path / "write_config.tsv", 0.1, "-")  # too short for Snakemake to measure
    found = read_timings(tmp_path).set_index("rule")
    columns = ["jobs", "seconds_total", "seconds_max", "max_rss_mb"]
    assert found.loc["fit_jump", columns].tolist() == [2, 6.5, 4.5, 100.0]
    assert found.loc["summarise", columns].tolist() == [1, 3.5, 3.5, 423.0]
    assert pd.isna(found.loc["write_config", "max_rss_mb"])
    assert list(read_timings(tmp_path / "none").columns) == ["rule", *columns]


def test_hardware_is_what_the_logs_begin_with(tmp_path):
    first = {"dump/a.log": "GPU X", "dump/b.log": "CPU Y, 1 thread", "fit.log": "CPU Y, 1 thread"}
    for name, device in first.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{DEVICE_LINE}{device}\nfit: 100%|##| 3/3\n")
    (tmp_path / "summarise.log").write_text(f"a warning\n{DEVICE_LINE}what stands later is not the device\n")
    (tmp_path / "empty.log").write_text("")
    found = read_hardware(tmp_path)
    assert found.to_dict("records") == [{"device": "CPU Y, 1 thread", "jobs": 2}, {"device": "GPU X", "jobs": 1}]
    assert read_hardware(tmp_path / "none").empty


def test_both_become_tables_even_where_nothing_was_recorded(tmp_path):
    files = [tmp_path / "timings.parquet", tmp_path / "hardware.parquet"]
    collect_timings(tmp_path / "none", tmp_path / "none", *files)
    tables = [read_table(file) for file in files]
    assert [table.column_names for table in tables] == [
        ["rule", "jobs", "seconds_total", "seconds_max", "max_rss_mb"],
        ["device", "jobs"],
    ]
    assert [len(table) for table in tables] == [0, 0]
