from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.checkpoint.config import SourceConfig, VisionConfig
from serve.checkpoint.keys import language_shapes, source_key, target_key, vision_shapes
from tests.unit.checkpoint.synthetic import CLIP, LANGUAGE


@given(layers=st.integers(1, 40), vision_layers=st.integers(1, 30))
def test_every_tensor_has_one_target_name_and_back(layers: int, vision_layers: int) -> None:
    language = SourceConfig.model_validate(LANGUAGE | {"num_hidden_layers": layers})
    vision = VisionConfig.model_validate(CLIP | {"num_hidden_layers": vision_layers})
    sources = [*language_shapes(language), *vision_shapes(vision)]
    targets = [target_key(name) for name in sources]
    assert len(set(targets)) == len(sources)
    assert [source_key(name) for name in targets] == sources


def test_the_published_model_has_as_many_parameters_as_its_files() -> None:
    published = SourceConfig.model_validate(
        LANGUAGE
        | {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "mm_hidden_size": 1024,
        }
    )
    from serve.checkpoint.config import CLIP_L_336

    shapes = language_shapes(published) | vision_shapes(CLIP_L_336)
    total = 0
    for shape in shapes.values():
        size = 1
        for side in shape:
            size *= side
        total += size
    assert total == 7_566_219_264


def test_a_foreign_name_is_refused() -> None:
    with pytest.raises(KeyError):
        target_key("model.image_newline")
    with pytest.raises(KeyError):
        source_key("model.embed_tokens.weight")
