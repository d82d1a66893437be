"""Models that see: the slots of images hold what the model's own tower makes of them, and other ways are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from architectures import ALL, ATTENTION, IMAGE
from transformers import AutoModelForImageTextToText, AutoTokenizer

from kvcheck.cache.layer import CacheLayer
from kvcheck.cache.shape import ModelShape
from kvcheck.core import paths
from kvcheck.core.errors import KvcheckError, MethodUnsupported
from kvcheck.methods import make
from kvcheck.methods.fp16 import Fp16
from kvcheck.models import LoadedModel, load
from kvcheck.models import vision as module
from kvcheck.models.encoder import Encoder
from kvcheck.models.loading import encoder_of
from kvcheck.models.vision import SlotEmbedding, Slots, Vision
from kvcheck.tasks.images import MARK, Image, plate

CPU = torch.device("cpu")
MEAN, DEVIATION = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
"""Of the checkpoint in architectures.py."""
PICTURES = (plate("12345678", (200, 0, 40)), plate("90125634", (0, 90, 255)), plate("77777777", (10, 160, 60)))
TEXT = f" onion ladder{MARK} kitchen salmon easel{MARK} mountain"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA with random weights."""
    return ALL["llava"].save(tmp_path_factory.mktemp("vision") / "llava")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load(str(folder), CPU, torch.float32)


@pytest.fixture(scope="module")
def vision(loaded: LoadedModel) -> Vision:
    assert loaded.vision is not None
    return loaded.vision


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keys and values are stored as they come, in float32; nothing is trained."""

    def keep(layer: CacheLayer, arriving: torch.dtype) -> torch.dtype:
        layer.store_dtype = arriving
        return arriving

    monkeypatch.setattr(CacheLayer, "_rounding", keep)
    with torch.no_grad():
        yield


def normalized(image: Image) -> torch.Tensor:
    """(1, 3, 16, 16), pixel by pixel."""
    pixels = torch.zeros(1, 3, 16, 16)
    for row in range(16):
        for column in range(16):
            for colour in range(3):
                value = image.cells[2 * row][2 * column][colour] / 255  # 32 cells on 16 pixels
                pixels[0, colour, row, column] = (value - MEAN[colour]) / DEVIATION[colour]
    return pixels


def changed(folder: Path, to: Path, **fields: Any) -> Path:
    """A copy with other entries in config.json."""
    copied = Path(shutil.copytree(folder, to))
    config = json.loads((copied / "config.json").read_text()) | fields
    (copied / "config.json").write_text(json.dumps(config))
    return copied


# -- what is fed -------------------------------------------------------------------------------------------------------


def test_the_shape_is_that_of_the_language_model(loaded: LoadedModel) -> None:
    assert loaded.shape == ModelShape(layers=2, heads=4, kv_heads=2, head_dim=8)
    assert loaded.max_length == ATTENTION["max_position_embeddings"]


def test_a_mark_becomes_the_slots_of_one_image(loaded: LoadedModel) -> None:
    encode = loaded.tokenizer.encode
    assert encode(f" onion{MARK}.") == [*encode(" onion"), *[IMAGE] * 4, *encode(".")]


@pytest.mark.parametrize("image", PICTURES)
def test_pixels_are_enlarged_and_scaled_as_the_preprocessor_says(vision: Vision, image: Image) -> None:
    torch.testing.assert_close(vision.pixels(image), normalized(image))


def test_images_give_the_logits_of_plain_transformers(folder: Path, loaded: LoadedModel, vision: Vision) -> None:
    ids = loaded.tokenizer.encode(TEXT)
    plain = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    pixels = torch.cat([normalized(image) for image in PICTURES[:2]])
    wanted = plain(torch.tensor([ids]), pixel_values=pixels, use_cache=False).logits
    blind = plain(torch.tensor([ids]), use_cache=False).logits
    runner = Fp16().runner(loaded)
    mine = runner.feed(runner.build(), torch.tensor([vision.placed(ids, PICTURES[:2])]), len(ids))
    torch.testing.assert_close(mine, wanted, atol=1e-4, rtol=0)
    assert float((wanted - blind).abs().max()) > 0.05, "the images make no difference"


def test_internvl_gives_the_logits_of_plain_transformers(tmp_path: Path) -> None:
    folder = ALL["internvl"].save(tmp_path / "internvl")
    seeing = load(str(folder), CPU, torch.float32)
    ids = seeing.tokenizer.encode(TEXT)
    assert ids.count(IMAGE) == 2 * 4
    assert [ids[ids.index(IMAGE) - 1], ids[ids.index(IMAGE) + 4]] == [IMAGE + 1, IMAGE + 2], "between <img> and </img>"
    plain = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    pixels = torch.cat([normalized(image) for image in PICTURES[:2]])
    wanted = plain(torch.tensor([ids]), pixel_values=pixels, use_cache=False).logits
    blind = plain(torch.tensor([ids]), use_cache=False).logits
    assert seeing.vision is not None
    runner = Fp16().runner(seeing)
    mine = runner.feed(runner.build(), torch.tensor([seeing.vision.placed(ids, PICTURES[:2])]), len(ids))
    torch.testing.assert_close(mine, wanted, atol=1e-4, rtol=0)
    assert float((wanted - blind).abs().max()) > 0.05, "the images make no difference"


def test_rows_with_other_images_are_fed_together_and_in_parts_as_alone(loaded: LoadedModel, vision: Vision) -> None:
    ids, runner = loaded.tokenizer.encode(TEXT), Fp16().runner(loaded)
    rows = torch.tensor([vision.placed(ids, PICTURES[:2]), vision.placed(ids, PICTURES[:0:-1])])
    alone = torch.cat([runner.feed(runner.build(), row, len(ids)) for row in rows.split(1)])
    cache = runner.build()
    parts = [runner.feed(cache, part, part.shape[1]) for part in rows.split(5, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), alone, atol=1e-4, rtol=0)


def test_the_same_image_has_the_same_ids(loaded: LoadedModel, vision: Vision) -> None:
    ids = loaded.tokenizer.encode(f"{MARK}{MARK}")
    first, second = PICTURES[:2]
    assert (
        vision.placed(ids, (first, second))
        == vision.placed(ids, (second, first))[4:] + vision.placed(ids, (second, first))[:4]
    )


def test_what_fills_the_slots_lies_where_the_words_do() -> None:
    """The parts of a model may lie on several devices."""
    embedding = SlotEmbedding(torch.nn.Embedding(10, 4, device="meta"), 2, lambda image: torch.zeros(2, 4))
    assert embedding.filling(0).device == embedding.weight.device


def test_images_of_earlier_contexts_are_let_go_and_made_again_when_they_are_read(
    loaded: LoadedModel, vision: Vision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for one image: a context of two is read all the same."""
    ids, runner = loaded.tokenizer.encode(TEXT), Fp16().runner(loaded)
    fed = torch.tensor([vision.placed(ids, PICTURES[:2])])
    wanted = runner.feed(runner.build(), fed, len(ids))
    monkeypatch.setattr(module, "HELD", vision.embedding.filling(0).nbytes)
    vision.placed(loaded.tokenizer.encode(MARK), PICTURES[2:3])
    assert len(vision.embedding.held) == 1
    torch.testing.assert_close(runner.feed(runner.build(), fed, len(ids)), wanted)
    assert len(vision.embedding.held) == 1


def test_slots_of_images_are_told_from_words(loaded: LoadedModel, vision: Vision) -> None:
    ids = loaded.tokenizer.encode(TEXT)
    slots = [token == IMAGE for token in ids]
    assert vision.shown(torch.tensor(ids)).tolist() == slots
    assert vision.shown(torch.tensor(vision.placed(ids, PICTURES[:2]))).tolist() == slots


def test_a_text_without_images_is_left_as_it_is(loaded: LoadedModel, vision: Vision) -> None:
    ids = loaded.tokenizer.encode(" onion ladder")
    assert vision.placed(ids, ()) == ids


def test_generate_takes_pixels_on_an_evicting_cache(loaded: LoadedModel, vision: Vision) -> None:
    ids = loaded.tokenizer.encode(TEXT)
    method = make("streaming_llm:window=6,sink=2")
    said = []
    for fed, given in (
        (ids, {"pixel_values": torch.cat([normalized(image) for image in PICTURES[:2]])}),
        (vision.placed(ids, PICTURES[:2]), {}),
    ):
        made = loaded.model.generate(
            torch.tensor([fed]), past_key_values=method.build(loaded.shape), max_new_tokens=6, do_sample=False, **given
        )
        said.append(made[0, len(ids) :].tolist())
    assert said[0] == said[1]


def test_look_m_keeps_all_text_without_being_told_the_token(loaded: LoadedModel, vision: Vision) -> None:
    ids = loaded.tokenizer.encode(TEXT)
    cache, _ = make("look_m:heavy=1,recent=1").runner(loaded).prefill(torch.tensor([vision.placed(ids, PICTURES[:2])]))
    text = [at for at, token in enumerate(ids) if token != IMAGE]
    for layer in cache.layers:
        assert all(layer.positions[0, head].tolist() == text for head in range(loaded.shape.kv_heads))


@pytest.mark.parametrize("count", [1, 3])
def test_too_few_and_too_many_images_are_refused(loaded: LoadedModel, vision: Vision, count: int) -> None:
    with pytest.raises(KvcheckError, match=f"{count} images fill {4 * count} slots, the context has 8"):
        vision.placed(loaded.tokenizer.encode(TEXT), PICTURES[:count])


def test_adapted_caches_leave_the_tower_its_own_attention(loaded: LoadedModel, vision: Vision) -> None:
    runner = make("transformers.dynamic").runner(loaded)
    runner.prefill(torch.tensor([loaded.tokenizer.encode(" onion ladder")]))
    unseen = plate("31313131", (1, 2, 3))
    runner.prefill(torch.tensor([vision.placed(loaded.tokenizer.encode(MARK), (unseen,))]))
    Fp16().runner(loaded).prefill(torch.tensor([vision.placed(loaded.tokenizer.encode(MARK), (unseen,))]))


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_text_model_refuses_an_image() -> None:
    with pytest.raises(MethodUnsupported, match="the model reads text only"):
        encoder_of("mini")[0].encode(f" onion{MARK}")


def test_the_tokenizer_alone_knows_the_slots(folder: Path) -> None:
    assert encoder_of(str(folder))[0].encode(MARK) == [IMAGE] * 4


def test_three_positions_per_token_are_refused(tmp_path: Path) -> None:
    text = {**ATTENTION, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
    transformers.Qwen2VLConfig(text_config=text).save_pretrained(tmp_path)
    with pytest.raises(MethodUnsupported, match=r"qwen2_vl\) gives every token of an image three positions"):
        load(str(tmp_path), CPU, torch.float32)


def test_other_ways_to_read_images_are_refused(tmp_path: Path) -> None:
    transformers.LlavaNextConfig(text_config=transformers.LlamaConfig(**ATTENTION)).save_pretrained(tmp_path)
    with pytest.raises(MethodUnsupported, match=r"llava_next\): how it reads images is not served"):
        load(str(tmp_path), CPU, torch.float32)


def test_a_tower_whose_slots_depend_on_the_size_is_refused(tmp_path: Path) -> None:
    seen, text = transformers.PixtralVisionConfig(), transformers.LlamaConfig(**ATTENTION)
    transformers.LlavaConfig(vision_config=seen, text_config=text).save_pretrained(tmp_path)
    with pytest.raises(MethodUnsupported, match="depends on its size with a tower of type pixtral"):
        load(str(tmp_path), CPU, torch.float32)


def test_a_tokenizer_without_the_token_is_refused(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(paths.bundle("fixtures") / "mini")
    config = transformers.AutoConfig.from_pretrained(folder)
    with pytest.raises(MethodUnsupported, match=f"marks images by token {IMAGE}, which its tokenizer does not have"):
        Slots.of("a model", config, tokenizer)


def test_a_model_without_the_scale_of_colours_is_refused(folder: Path, tmp_path: Path) -> None:
    copied = changed(folder, tmp_path / "copy")
    (copied / "preprocessor_config.json").unlink()
    with pytest.raises(MethodUnsupported, match="comes without image_mean and image_std"):
        load(str(copied), CPU, torch.float32)


def test_a_tower_that_makes_another_number_of_slots_is_refused(loaded: LoadedModel, vision: Vision) -> None:
    wrong = Vision("a model", loaded.model, replace(vision.slots, count=5), vision.scale)
    try:
        with pytest.raises(MethodUnsupported, match="its tower makes 4 slots of an image, its config says 5"):
            wrong.placed([IMAGE] * 5, PICTURES[:1])
    finally:
        loaded.model.set_input_embeddings(vision.embedding)


def test_the_scale_of_colours_is_part_of_what_a_model_is(folder: Path, tmp_path: Path, loaded: LoadedModel) -> None:
    copied = changed(folder, tmp_path / "copy")
    assert load(str(copied), CPU, torch.float32).fingerprint == loaded.fingerprint
    (copied / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": [1, 1, 1]}))
    assert load(str(copied), CPU, torch.float32).fingerprint != loaded.fingerprint


@pytest.mark.parametrize("select", ["default", "full"])
def test_the_class_token_of_a_tower_is_a_slot_where_it_is_kept(folder: Path, tmp_path: Path, select: str) -> None:
    seeing = load(str(changed(folder, tmp_path / select, vision_feature_select_strategy=select)), CPU, torch.float32)
    assert seeing.vision is not None
    slots = {"default": 4, "full": 5}[select]
    assert len(seeing.tokenizer.encode(MARK)) == slots
    seeing.vision.placed([IMAGE] * slots, PICTURES[:1])


def test_an_encoder_writes_what_is_around_an_image_as_ever(loaded: LoadedModel) -> None:
    plain = Encoder(loaded.tokenizer.tokenizer)
    assert loaded.tokenizer.encode(" onion ladder.") == plain.encode(" onion ladder.")
