"""The studio's API: the same pictures as elsewhere, the round trip, limits, the queue."""

import json
import os
import re
import shlex
import struct
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("uvicorn", reason="the extra `studio` is not installed")

from sfumato.base.errors import InputError
from sfumato.base.images import png_bytes, settings_in_png
from sfumato.base.lock import locked
from sfumato.interactive.serving import Refusal
from sfumato.interactive.studio import runs
from sfumato.interactive.studio.app import HANDLERS, LIVE, Studio, application
from sfumato.interactive.studio.asked import Cells, Picture
from sfumato.interactive.studio.drawing import draw_cells
from sfumato.interactive.studio.gallery import Gallery
from sfumato.interactive.studio.openapi import PATHS
from sfumato.interactive.studio.png import MOST_TEXT_BYTES, settings_of
from sfumato.interactive.studio.settings import as_command
from sfumato.interactive.studio.shelf import Shelf
from sfumato.interactive.studio.work import Job, Worker
from sfumato.training.records import read_records
from tests.servers import Answer, ask, running

MODEL = "bundled:mnist"
SEVEN = {"model": MODEL, "prompt": "A handwritten digit 7", "steps": 3}


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    folder = tmp_path_factory.mktemp("studio")
    return Studio(
        shelf=Shelf([MODEL, LIVE], device="cpu"),
        gallery=Gallery(folder / "gallery"),
        runs=folder / "runs",
    )


@pytest.fixture(scope="module")
def url(studio: Studio) -> Iterator[str]:
    with running(application(studio, token=None)) as url:
        yield url


def events(url: str, job: str, last: int = 0) -> list[tuple[str, dict[str, Any]]]:
    """All events of a job, to its end."""
    text = ask(f"{url}/api/jobs/{job}/events", last_event_id=str(last)).body.decode()
    blocks = [
        dict(line.split(": ", 1) for line in block.splitlines())
        for block in text.strip().split("\n\n")
    ]
    return [(block["event"], json.loads(block["data"])) for block in blocks]


def told_of(url: str, path: str, body: Any, event: str) -> list[dict[str, Any]]:
    return [values for name, values in done(url, path, body) if name == event]


def done(url: str, path: str, body: Any) -> list[tuple[str, dict[str, Any]]]:
    answer = ask(url + path, body)
    assert answer.status == 202, answer.body
    told = events(url, answer.json["job"])
    assert told[-1][0] == "done", told[-1]
    return told


# The same picture everywhere ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "nfe"),
    [
        ({"guidance": 2.5, "form": "apg:eta=0.5", "sampler": "DDIM"}, 6),
        pytest.param(
            {"guidance": 2, "form": "cfg", "timestep_spacing": "leading"},
            6,
            marks=pytest.mark.slow,
        ),
        pytest.param({"guidance": 0, "form": "cfg", "prompt": ""}, 3, marks=pytest.mark.slow),
    ],
)
def test_the_page_the_api_the_command_and_python_give_the_same_picture(url, sfumato, own, nfe):
    asked = {**SEVEN, "seed": 5, **own}
    by_api = ask(f"{url}/api/picture", asked)
    assert by_api.headers["content-type"] == "image/png"
    page = {**{k: v for k, v in asked.items() if k != "seed"}, "seeds": [4, 5]}
    told = done(url, "/api/sample", page)
    names = [values["name"] for name, values in told if name == "picture"]
    by_page = ask(f"{url}/api/gallery/{names[1]}").body
    known = ask(f"{url}/api/check", asked).json
    assert known["nfe"] == nfe
    command = shlex.split(known["command"])
    assert command[0] == "sfumato"
    result = sfumato(*command[1:], "--out", "by-command")
    assert result.code == 0, result.err
    by_command = next(Path("by-command").glob("*.png")).read_bytes()
    exec(known["python"], {})
    by_python = Path("picture.png").read_bytes()
    assert by_api.body == by_page == by_command == by_python


def test_the_command_of_a_restored_picture_has_all_its_settings(url, studio):
    """Every setting of `Picture` that is not its default, and the device of the studio."""
    made = studio.shelf.get(MODEL).sample("-", 3, steps=2, timestep_spacing="linspace")
    found = ask(f"{url}/api/inspect", body=made.png(0)).json["picture"]
    command = ask(f"{url}/api/check", found).json["command"]
    settings = made.settings[0]
    assert command == (
        f"sfumato sample {MODEL} --seed 3 --guidance {settings['guidance_scale']} "
        f"--guidance-form {settings['guidance']} --sampler {settings['sampler']} --steps 2 "
        "--timestep-spacing linspace --device cpu -- -"
    )
    named = {name.replace("_", "-") for name in Picture.model_fields} - {"model", "prompt", "alone"}
    options = {one.removeprefix("--") for one in as_command(everything()).split() if "--" in one}
    assert options == {name.replace("form", "guidance-form") for name in named}


def everything() -> Picture:
    return Picture(
        model=MODEL,
        prompt="x",
        negative_prompt="y",
        guidance=1,
        form="cfg",
        sampler="DDIM",
        steps=1,
        timestep_spacing="leading",
    )


@pytest.mark.slow
@pytest.mark.parametrize("rows", [True, False])
def test_a_png_gives_its_settings_back_and_they_the_same_bits(url, studio, rows):
    model = studio.shelf.get(MODEL)
    made = model.sample("A handwritten digit 3", 2**62 + 1, steps=4, guidance=1.7, alone=rows)
    found = ask(f"{url}/api/inspect", body=made.png(0)).json
    assert found["notes"] == []
    assert found["settings"]["seed"] == str(2**62 + 1)
    again = ask(f"{url}/api/picture", found["picture"]).body
    assert again == made.png(0)


def test_a_png_of_another_model_says_so(url, studio):
    model = studio.shelf.get(MODEL)
    settings = {**model.sample("A handwritten digit 3", 0, steps=1).settings[0]}
    settings["weights_sha256"] = "0" * 64
    png = png_bytes(Image.new("L", (8, 8)), {f"sfumato:{k}": str(v) for k, v in settings.items()})
    found = ask(f"{url}/api/inspect", body=png).json
    assert found["picture"]["model"] is None
    assert "another model" in found["notes"][0]


def test_live_pictures_are_not_kept(url, studio):
    before = studio.gallery.names()
    body = {"model": LIVE, "prompt": "A handwritten digit 1", "keep": False}
    (picture,) = [one for name, one in done(url, "/api/sample", body) if name == "picture"]
    assert picture["png"].startswith("data:image/png;base64,")
    assert studio.gallery.names() == before


def test_the_preview_is_x0_and_the_last_one_the_picture(url):
    told = done(url, "/api/sample", {**SEVEN, "seeds": [1]})
    steps = [values for name, values in told if name == "step"]
    assert steps[-1]["step"] == steps[-1]["of"] == 3


# Cells --------------------------------------------------------------------------------------------


def test_cells_are_made_once_and_are_those_of_make(url):
    cells = [{**SEVEN, "guidance": w, "seed": s} for w in (1, 2) for s in (0, 1)]
    first = [
        values for name, values in done(url, "/api/cells", {"pictures": cells}) if name == "cell"
    ]
    again = [
        values for name, values in done(url, "/api/cells", {"pictures": cells}) if name == "cell"
    ]
    assert [one["cached"] for one in first] == [False] * 4
    assert [one["cached"] for one in again] == [True] * 4
    assert len({one["name"] for one in first}) == 4
    cell = ask(f"{url}/api/cells/{first[3]['name']}").body
    assert cell == ask(f"{url}/api/picture", cells[3]).body


def test_a_cell_is_known_by_the_settings_that_its_model_has(studio):
    """A model that was exported again under another default guidance scale, or is elsewhere."""
    model, gallery = studio.shelf.get(MODEL), Gallery(Path("gallery"))
    made: list[tuple[bool, bytes]] = []
    for name, scale in (("m", 1), ("m", 5), ("m", 1), ("elsewhere", 5)):
        shelf = Shelf([name])
        own = shelf._models[name] = model.with_(guidance=scale, form="cfg")
        shelf._tell(name, state="ready")
        job = Job(lambda job: None)
        asked = Picture(**{**SEVEN, "model": name})
        draw_cells(job, Cells(pictures=(asked,)), shelf, gallery)
        (told,) = [values for _, _, values in job.after(0)]
        png = gallery.cell(told["name"]).read_bytes()
        assert png == own.sample(SEVEN["prompt"], 0, steps=3).png(0)
        made.append((told["cached"], png))
    assert [cached for cached, _ in made] == [False, False, True, True]
    assert made[0][1] != made[1][1]


# Jobs ---------------------------------------------------------------------------------------------


def test_a_job_is_cancelled_while_it_samples(url):
    long = {**SEVEN, "steps": 1000, "sampler": "DDIM", "seeds": list(range(64))}
    job = ask(f"{url}/api/sample", long).json["job"]
    with urllib.request.urlopen(f"{url}/api/jobs/{job}/events", timeout=60) as stream:
        while b"event: step" not in stream.readline():
            pass
        assert ask(f"{url}/api/jobs/{job}", method="DELETE").status == 202
    told = events(url, job)
    assert told[-1][0] == "cancelled"
    assert not any(name == "picture" for name, _ in told)


def test_errors_of_a_job_are_its_last_event_and_come_at_once_for_a_picture(url):
    answer = ask(f"{url}/api/sample", {**SEVEN, "sampler": "Nonesuch"})
    name, values = events(url, answer.json["job"])[-1]
    assert (name, values["error"]) == (
        "failed",
        "No sampler named 'Nonesuch' for variance_preserving.",
    )
    direct = ask(f"{url}/api/picture", {**SEVEN, "sampler": "Nonesuch"})
    assert (direct.status, direct.json) == (400, values)


def test_unknown_words_are_a_note(url):
    told = done(url, "/api/sample", {**SEVEN, "prompt": "A handwritten zebra", "seeds": [0]})
    assert any("zebra" in values.get("text", "") for name, values in told if name == "note")


def test_the_queue_is_bounded_and_says_how_long():
    worker = Worker(most_waiting=2)
    free = threading.Event()
    worker.start()
    first = worker.add(lambda job: free.wait(30) and None)
    while worker.state()["waiting"]:
        time.sleep(0.01)
    second, third = (worker.add(lambda job: None) for _ in range(2))
    assert (worker.ahead(second), worker.ahead(third)) == (1, 2)
    with pytest.raises(Refusal) as caught:
        worker.add(lambda job: None)
    assert caught.value.status == 503
    assert "Try again in" in caught.value.hint
    worker.cancel(third)
    free.set()
    while not second.ended:
        time.sleep(0.01)
    worker.stop()
    assert [job.after(0)[-1][1] for job in (first, second, third)] == ["done", "done", "cancelled"]


def test_what_a_job_remembers_does_not_grow_with_its_steps():
    job = Job(lambda job: None)
    for step in range(1000):
        job.tell("step", step=step, png="x" * 1000)
    assert [values["step"] for _, _, values in job.after(0)] == [999]


# Gallery ------------------------------------------------------------------------------------------


def test_the_gallery_is_there_after_a_restart(url, studio):
    told = done(url, "/api/sample", {**SEVEN, "seeds": [11, 12]})
    names = [values["name"] for name, values in told if name == "picture"]
    again = Gallery(studio.gallery.folder).page(before="", limit=2)
    assert [one["name"] for one in again["pictures"]] == names[::-1]
    assert [one["settings"]["seed"] for one in again["pictures"]] == ["12", "11"]
    assert settings_in_png(studio.gallery.path(names[0]))["prompt"] == SEVEN["prompt"]
    older = ask(f"{url}/api/gallery?limit=1&before={names[1]}").json["pictures"]
    assert [one["name"] for one in older] == [names[0]]
    assert ask(f"{url}/api/gallery/{names[0]}", method="DELETE").status == 200
    assert ask(f"{url}/api/gallery/{names[0]}").status == 404


def test_a_folder_that_is_there_becomes_one_of_this_user_alone():
    Path("pictures").mkdir(mode=0o755)
    Gallery(Path("pictures"))
    assert Path("pictures").stat().st_mode & 0o777 == 0o700


def test_the_gallery_is_for_this_user_alone():
    gallery = Gallery(Path("pictures"))
    assert Path("pictures").stat().st_mode & 0o777 == 0o700
    Path("pictures/other.png").write_bytes(b"not one of the studio")
    assert gallery.names() == []
    with pytest.raises(Refusal):
        gallery.path("other.png")


# Evolutions ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_evolution_by_the_api_is_that_of_the_command(url, sfumato):
    new = {**SEVEN, "name": "sevens", "prompts": [SEVEN["prompt"]], "seed": 3, "size": 6}
    del new["prompt"]
    done(url, "/api/evolutions", new)
    assert ask(f"{url}/api/evolutions", new).json["error"] == "There is an evolution 'sevens'."
    done(url, "/api/evolutions/sevens/advance", {"generation": 0, "picks": [2, 5]})
    told = done(url, "/api/evolutions/sevens/advance", {"generation": 0, "picks": [1]})
    assert ("generation", {"number": 2}) in told
    known = ask(f"{url}/api/evolutions/sevens").json
    assert [one["parent"] for one in known["generations"]] == [None, 0, 0]
    assert known["model"] == MODEL
    assert known["generations"][0]["deviation"] == pytest.approx(1, abs=0.1)
    arguments = ("--steps", "3", "--seed", "3", "--size", "6", "--picks", "2 5", "--device", "cpu")
    result = sfumato("evolve", MODEL, SEVEN["prompt"], "--out", "own", *arguments)
    assert result.code == 0, result.err
    own = json.loads(Path("own/evolution.json").read_text("utf-8"))
    assert own["generations"][1]["images"] == known["generations"][1]["images"]
    for image in own["generations"][1]["images"]:
        by_api = ask(f"{url}/api/evolutions/sevens/images/{image}").body
        assert by_api == Path(f"own/images/{image}.png").read_bytes()
    assert ask(f"{url}/api/evolutions").json["evolutions"][0]["generations"] == 3


# Runs ---------------------------------------------------------------------------------------------


def test_the_train_tab_reads_runs(small_run):
    (one,) = runs.listed(small_run)
    assert (one["folder"], one["state"]) == (str(small_run), "finished")
    run = runs.run_path(small_run, one["folder"])
    curve = runs.curve(run)
    records = read_records(small_run / "metrics.jsonl")
    assert curve["losses"][-1] == [records[-1]["images"], records[-1]["loss"]]
    assert curve["losses"][-1][1] == one["loss"]
    newest = runs.sample_path(run, curve["samples"][0])
    assert newest == max((small_run / "samples").glob("*.png"))
    for name in ("", "..", "/etc", str(small_run.parent)):
        with pytest.raises(Refusal):
            runs.run_path(small_run, name)
    for name in ("", "..", "../experiment.yaml", "none.png"):
        with pytest.raises(Refusal):
            runs.sample_path(run, name)
    assert runs.listed(Path("nonesuch")) == []


def test_a_long_curve_is_thinned_to_its_end():
    lines = [json.dumps({"images": n, "loss": 1 / n}) for n in range(1, 2000)]
    Path("metrics.jsonl").write_text("\n".join(lines) + "\n" + '{"images": 5, "lo', "utf-8")
    losses = runs.curve(Path())["losses"]
    assert losses[-1] == [1999, 1 / 1999]
    assert 200 <= len(losses) <= 400


def test_a_loss_that_is_no_number_is_left_out(url, studio):
    run = studio.runs / "diverged"
    run.mkdir(parents=True)
    lines = [
        '{"images": 1, "loss": NaN}',
        '{"images": 2, "loss": 0.5}',
        '{"images": 3, "loss": Infinity}',
    ]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    (run / "experiment.yaml").write_text("preset: digits\n", "utf-8")
    with locked(run):  # it trains, so that all its records count
        assert ask(f"{url}/api/run?name=diverged").json["losses"] == [[2, 0.5]]
        (one,) = ask(f"{url}/api/runs").json["runs"]
    assert (one["folder"], one["loss"]) == ("diverged", 0.5)


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {**SEVEN, "seeds": []},
        {**SEVEN, "seeds": list(range(65))},
        {**SEVEN, "seeds": [-1]},
        {**SEVEN, "seeds": [2**63]},
        {**SEVEN, "steps": 1001},
        {**SEVEN, "guidance": 1e9},
        {**SEVEN, "prompt": "x" * 2001},
        {**SEVEN, "unknown": 1},
        [],
    ],
)
def test_values_out_of_range_are_refused_before_they_are_queued(url, body):
    answer = ask(f"{url}/api/sample", body)
    assert answer.status == 422, answer.body
    assert answer.json["error"]


def test_only_json_is_taken_so_that_no_form_of_another_site_is(url):
    body = json.dumps(SEVEN).encode()
    assert ask(f"{url}/api/sample", body=body, content_type="text/plain").status == 415
    assert ask(f"{url}/api/sample", {**SEVEN, "model": "/etc"}).status == 202
    assert ask(f"{url}/api/picture", {**SEVEN, "model": "/etc"}).status == 400


@pytest.mark.parametrize(
    "path",
    [
        "/api/gallery/..%2f..%2fsecret.png",
        "/api/gallery/%2fetc%2fpasswd",
        "/api/cells/..%2f0000000000000000000-00000000.png",
        "/api/evolutions/..",
        "/api/evolutions/%2e%2e/images/0000000000000000",
        "/api/evolutions/..%2f/advance",
        "/api/run?name=../..",
        "/api/run?name=%2fetc",
        "/api/run/sample?name=..&file=..%2fsecret.png",
        "/static/..%2fstudio%2f..%2f..%2fserving.py",
        "/api/jobs/nonesuch/events",
        f"/api/gallery/{'a' * 300}.png",
        f"/api/cells/{'a' * 300}.png",
        f"/api/evolutions/{'a' * 300}",
        f"/api/run/sample?name=..&file={'a' * 300}.png",
    ],
)
def test_no_path_leaves_its_folder(url, studio, path):
    (studio.gallery.folder.parent / "secret.png").write_bytes(b"secret")
    answer = ask(url + path)
    assert answer.status in (404, 405)
    assert b"secret" not in answer.body.replace(b"secret.png", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(*chunks: bytes, width: int = 8, height: int = 8) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


BOMB = chunk(b"iTXt", b"sfumato:prompt\0\1\0\0\0" + zlib.compress(b"x" * 100_000_000))
BAD = {
    "many pixels": png_of(width=100_000, height=100_000),
    "much text": png_of(chunk(b"tEXt", b"comment\0" + b"x" * (MOST_TEXT_BYTES + 1))),
    "text that inflates": png_of(BOMB),
    "zTXt that inflates": png_of(chunk(b"zTXt", b"sfumato:prompt\0\0" + BOMB)),
    "cut": png_of()[:-10],
    "damaged": png_of()[:-1] + b"x",
    "a length beyond the file": png_of(b"\xff\xff\xff\xfftEXt"),
    "no header": b"\x89PNG\r\n\x1a\n" + chunk(b"IEND", b""),
    "no PNG": b"GIF89a",
    "nothing": b"",
    "no settings": png_of(),
    "settings that are none": png_of(chunk(b"iTXt", b"sfumato:prompt\0\0\0\0\0x")),
    "a seed that is none": png_of(
        chunk(b"iTXt", b"sfumato:prompt\0\0\0\0\0x"), chunk(b"iTXt", b"sfumato:seed\0\0\0\0\0-9")
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_png_that_is_a_trap_is_refused_at_once(url, what):
    began = time.monotonic()
    answer = ask(f"{url}/api/inspect", body=BAD[what])
    assert answer.status == 400, answer.body
    assert answer.json["error"]
    assert time.monotonic() - began < 5


def test_messages_of_pngs(refused):
    for what in ("many pixels", "much text", "cut", "damaged", "no PNG", "no settings"):
        with refused(InputError):
            settings_of(BAD[what])


# The documents ------------------------------------------------------------------------------------


def test_every_endpoint_is_documented_and_answers(url):
    document = ask(f"{url}/openapi.json").json
    documented = {
        (path, method) for path, methods in document["paths"].items() for method in methods
    }
    assert documented == {
        (path, one.method.lower()) for path, endpoints in PATHS.items() for one in endpoints
    }
    assert {one.name for endpoints in PATHS.values() for one in endpoints} == set(HANDLERS)
    names = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert names <= set(document["components"]["schemas"])
    page = ask(f"{url}/docs").body.decode()
    assert all(path in page for path in PATHS)


def test_no_page_names_another_host(url):
    texts = [ask(url + path).body.decode() for path in ("/", "/docs")]
    files = Path(HANDLERS["docs"].__code__.co_filename).parents[1] / "static" / "studio"
    texts += [one.read_text("utf-8") for one in files.iterdir()]
    allowed = ("http://127.0.0.1:7878", "http://www.w3.org/")
    found = [
        one for text in texts for one in re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s'\"]*", text)
    ]
    assert [one for one in found if not one.startswith(allowed)] == []


# Many at once -------------------------------------------------------------------------------------


def asked_at_once(
    url: str, asked: Sequence[Mapping[str, object]], **headers: str
) -> dict[int, Answer]:
    """What twenty clients get, while two more send nonsense."""
    answers: dict[int, Answer] = {}

    def client(first: int) -> None:
        for index in range(first, len(asked), 20):
            answers[index] = ask(f"{url}/api/picture", asked[index], **headers)

    threads = [threading.Thread(target=client, args=(first,)) for first in range(20)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        ask(f"{url}/api/inspect", body=BAD["text that inflates"], **headers)
        ask(f"{url}/api/sample", body=b"{" * 10_000, content_type="application/json", **headers)
    for thread in threads:
        thread.join()
    return answers


@pytest.mark.slow
@pytest.mark.parametrize("requests", [20, 200])
def test_twenty_clients_get_their_own_pictures(url, studio, requests):
    asked = [
        {"model": LIVE, "prompt": f"A handwritten digit {i % 10}", "seed": i // 10}
        for i in range(requests)
    ]
    answers = asked_at_once(url, asked)
    expected = studio.shelf.get(LIVE)
    for index, one in enumerate(asked):
        assert answers[index].status == 200, answers[index].body
        assert answers[index].body == expected.sample(one["prompt"], one["seed"]).png(0)
    assert len(studio.worker._jobs) <= 200


# The command --------------------------------------------------------------------------------------


def test_the_command_serves_the_page_before_the_model_and_ends_on_ctrl_c():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "sfumato", "studio", "--no-browser", "--gallery", "pictures"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        url, _, token = process.stdout.readline().strip().partition("?token=")
        file = Path("pictures/token.txt")
        assert (file.read_text("utf-8"), file.stat().st_mode & 0o777) == (f"{token}\n", 0o600)
        assert [ask(url + path).status for path in ("", "api/gallery", "api/picture")] == [401] * 3
        assert ask(f"{url}?token={token}").status == 303
        own = {"authorization": f"Bearer {token}"}
        page = ask(url, **own)
        states = [one["state"] for one in ask(url + "api/models", **own).json["models"]]
        process.send_signal(2)
        out, err = process.communicate(timeout=60)
    assert page.status == 200
    assert len(states) == 2
    assert states[1] == "waiting"
    assert (process.returncode, err) == (0, "")
    assert out.endswith("Ended. The pictures are in pictures.\n")
    assert not Path("pictures/.lock").exists()


@pytest.mark.slow
def test_the_studio_is_measured(sfumato):
    result = sfumato("bench", "studio", "--pictures", "2", "--out", "times.json")
    assert result.code == 0, result.err
    times = json.loads(Path("times.json").read_text("utf-8"))
    assert 0 < times["page"] < times["first picture"]
    assert len(times["following"]) == 2


def test_the_page_needs_no_torch():
    code = "import sys, sfumato.interactive.studio.app; print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert out.stdout == "False\n"


def test_messages_of_the_command(sfumato):
    result = sfumato("studio", "nonesuch", "--no-browser")
    assert (result.code, result.err.splitlines()[0]) == (2, "error: nonesuch does not exist.")


@pytest.mark.slow
def test_memory_stays_flat_over_200_requests(tmp_path: Path) -> None:
    """Of the command, once 40 pictures have filled what is kept."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "sfumato", "studio", LIVE, "--no-browser"]
    command += ["--gallery", str(tmp_path / "pictures")]
    asked = [
        {"model": LIVE, "prompt": f"A handwritten digit {i % 10}", "seed": i} for i in range(200)
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        url, _, token = process.stdout.readline().strip().partition("/?token=")
        own = {"authorization": f"Bearer {token}"}
        try:
            asked_at_once(url, asked[:40], **own)
            before = resident_bytes(process.pid)
            answers = asked_at_once(url, asked, **own)
            grown = resident_bytes(process.pid) - before
        finally:
            process.send_signal(2)
    assert {one.status for one in answers.values()} == {200}
    print(f"{before / 2**20:.0f} MiB after 40 pictures, {grown / 2**20:+.1f} after 200 more")
    assert grown < 32 * 2**20


def resident_bytes(process: int) -> int:
    text = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(re.search(r"VmRSS:\s+(\d+)", text)[1])  # type: ignore[index]
