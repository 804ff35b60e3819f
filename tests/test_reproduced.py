"""The published table: made of the files of its runs, and of nothing that flatters."""

import json

import numpy as np
import pytest


def result(row, value, **rest):
    return {
        "row": row, "data": "mnist, …", "seed": 0, "log_likelihood": -value, "is_lower_bound": False,
        "elbo": -value - 3, "mc_standard_error": 0.004, "data_standard_error": 0.25, "reliable_fraction": 0.995,
        "kl": {"z": 25.0}, "active_units": {"z": 39}, "epochs": 700, "converged": True, "seconds": 3600,
        "machine": "a machine", "test": ["x"],
    } | rest  # fmt: skip


def test_the_table_is_made_of_the_files_and_of_nothing_else(scripts, tmp_path):
    _, reproduce, reproduced = scripts
    results, readme = tmp_path / "results", tmp_path / "README.md"
    results.mkdir()
    begin, end = reproduced.MARKS
    readme.write_text(f"before\n{begin}\nstale 99.99\n{end}\nafter\n")
    empty = reproduced.table(reproduce.ROWS, results)
    assert empty.count(reproduced.NOT_RUN) == len(reproduce.ROWS)
    (results / "vae-standard-0.json").write_text(json.dumps(result("vae-standard", 84.61)))
    (results / "vae-vamp-0.json").write_text(json.dumps(result("vae-vamp", 83.9)))
    (results / "vae-iaf-0.json").write_text(
        json.dumps(result("vae-iaf", 83.0, converged=False, is_lower_bound=True, epochs=120))
    )
    text = reproduced.table(reproduce.ROWS, results)
    lines = {name: next(line for line in text.splitlines() if number in line)
             for name, number in (("standard", "84.61"), ("vamp", "83.90"), ("iaf", "83.00"))}  # fmt: skip
    assert "+0.16, within ± 0.35" in lines["standard"] and "99.5%" in lines["standard"]
    assert "+1.47, OUTSIDE ± 0.35" in lines["vamp"]
    assert "≤ 83.00" in lines["iaf"] and "not converged: 120 epochs" in lines["iaf"]
    assert text.count(reproduced.NOT_RUN) == len(reproduce.ROWS) - 3
    for _ in range(2):
        reproduced.insert(text, readme, reproduced.MARKS)
    assert readme.read_text() == f"before\n{begin}\n{text}\n{end}\nafter\n"
    readme.write_text("no marks")
    with pytest.raises(ValueError, match="reproduced"):
        reproduced.insert(text, readme, reproduced.MARKS)


def test_runs_on_the_same_images_are_compared_image_by_image(scripts, tmp_path):
    _, reproduce, reproduced = scripts
    (tmp_path / "values").mkdir()
    noise = np.random.RandomState(0).normal(size=(2, 1000))
    values = {"vae-standard": -84 + 20 * noise[0], "vae-iaf": -83.5 + 20 * noise[0] + noise[1]}
    for row, own in values.items():
        np.save(tmp_path / "values" / f"{row}-0.npy", own)
        (tmp_path / f"{row}-0.json").write_text(json.dumps(result(row, -own.mean(), is_lower_bound=True)))
    (tmp_path / "vae-vamp-0.json").write_text(json.dumps(result("vae-vamp", 90.0, test=["other images"])))
    reproduce.pair_up(tmp_path)
    paired = json.loads((tmp_path / "vae-iaf-0.json").read_text())["paired"]
    assert set(paired) == {"vae-standard-0"}
    assert paired["vae-standard-0"]["difference"] == pytest.approx(0.5 + noise[1].mean())
    assert paired["vae-standard-0"]["standard_error"] == pytest.approx(noise[1].std(ddof=1) / 1000**0.5)
    text = reproduced.table(reproduce.ROWS, tmp_path)
    difference = f"{0.5 + noise[1].mean():.2f} ± {noise[1].std(ddof=1) / 1000**0.5:.2f}"
    assert f"`vae-iaf-0` is better than `vae-standard-0` by {difference} nats" in text
    away = -values["vae-iaf"].mean() - 82.43
    assert f"`vae-iaf-0` (prior standard, posterior iaf, ELBO), {away:.2f} nats worse than the best published" in text
    assert "`vae-iaf-0` and `vae-vamp-0` cannot be paired" in text and "differences are of bounds" in text


def test_a_pair_without_its_values_stays_until_one_of_its_runs_is_another(scripts, tmp_path):
    pair = {"difference": 1.5, "standard_error": 0.1}
    for row, value, other in (("vae-standard", 84.5, "vae-iaf-0"), ("vae-iaf", 83.0, "vae-standard-0")):
        sign = -1 if row == "vae-standard" else 1
        paired = {other: pair | {"difference": sign * 1.5}}
        (tmp_path / f"{row}-0.json").write_text(json.dumps(result(row, value, paired=paired)))

    def paired_of(row):
        scripts[1].pair_up(tmp_path)
        return json.loads((tmp_path / f"{row}-0.json").read_text())["paired"]

    assert paired_of("vae-iaf") == {"vae-standard-0": pair}
    (tmp_path / "vae-standard-0.json").write_text(json.dumps(result("vae-standard", 84.2)))
    assert paired_of("vae-iaf") == paired_of("vae-standard") == {}


def test_only_what_was_run_to_its_end_on_these_data_is_called_the_best(scripts, tmp_path):
    _, reproduce, reproduced = scripts
    for run in (
        result("vae-standard", 84.6),
        result("vae-iaf", 80.0, converged=False),
        result("vae-flow", 20.0, data="digits, …"),
        result("vae-vamp", 82.0, seed=1),
        result("vae-vamp", 82.5),
    ):
        (tmp_path / f"{run['row']}-{run['seed']}.json").write_text(json.dumps(run))
    text = reproduced.table(reproduce.ROWS, tmp_path)
    assert "`vae-vamp-1` (prior vamp, posterior diagonal, ELBO), 0.43 nats better than the best published" in text
    assert "| VAE, one layer, seed 0 | vamp |" in text and "| VAE, one layer, seed 1 | vamp |" in text


def test_the_band_is_as_wide_as_it_says(scripts, tmp_path):
    _, reproduce, reproduced = scripts
    for value, said in ((84.10, "-0.35, within"), (84.80, "+0.35, within"), (84.81, "+0.36, OUTSIDE")):
        (tmp_path / "vae-standard-0.json").write_text(json.dumps(result("vae-standard", value)))
        assert f"{said} ± 0.35" in reproduced.table(reproduce.ROWS, tmp_path)


def test_the_committed_table_is_that_of_the_committed_files(scripts):
    _, reproduce, reproduced = scripts
    begin, end = reproduced.MARKS
    readme = reproduce.README.read_text()
    assert readme[readme.index(begin) + len(begin) : readme.index(end)].strip() == reproduced.table(
        reproduce.ROWS, reproduce.RESULTS
    )
    runs = {path.stem: json.loads(path.read_text()) for path in reproduce.RESULTS.glob("*.json")}
    stated = (
        "model prior posterior objective log_likelihood mc_standard_error data_standard_error reliable_fraction elbo"
    )
    stated += " kl active_units epochs best_epoch converged seconds seed num_samples settings machine versions"
    for stem, run in runs.items():
        row = reproduce.ROWS[run["row"]]
        assert set(stated.split()) <= set(run), stem
        assert run["num_samples"] == (row.num_samples or 5000) and run["log_likelihood"] >= run["elbo"], stem
        assert (run["prior"], run["posterior"], run["objective"]) == (row.prior, row.posterior, row.objective), stem
        for other, pair in run["paired"].items():
            means = run["log_likelihood"] - runs[other]["log_likelihood"]
            assert pair["difference"] == pytest.approx(means, abs=1e-3), (stem, other)
        if (path := reproduce.RESULTS / "values" / f"{stem}.npy").exists():
            assert np.load(path).mean(dtype=float) == pytest.approx(run["log_likelihood"], abs=1e-3), stem
