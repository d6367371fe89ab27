"""Settings of rerankers: honored, or refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from golden_models import GOLDEN
from golden_rerankers import NAMES, copy_reranker, edit_json, reranker_dir

from akidb_mlx_plugin.checkpoints.cross_encoder import check_cross_encoder, read_cross_encoder
from akidb_mlx_plugin.checkpoints.lookup import download_model
from akidb_mlx_plugin.checkpoints.reader import check_settings, read_checkpoint
from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.inference.pair_tokenizer import find_words, load_pair_tokenizer

MODULE = "sentence_transformers.base.modules.transformer.Transformer"


@pytest.mark.parametrize("name", NAMES)
def test_checked_from_the_settings_alone(name: str, tmp_path: Path) -> None:
    folder = copy_reranker(name, tmp_path)
    (folder / "model.safetensors").unlink()
    check_cross_encoder(folder)
    with pytest.raises(ModelNotFoundError, match="is a reranker"):
        check_settings(folder)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("torch.nn.modules.activation.Sigmoid", "sigmoid"),
        ("torch.nn.Identity", "identity"),
        ("torch.nn.modules.activation.Tanh", "tanh"),
        (None, "sigmoid"),
    ],
)
def test_activations(activation: str | None, expected: str, tmp_path: Path) -> None:
    folder = copy_reranker("bert", tmp_path, sbert_ce_default_activation_function=activation)
    assert read_cross_encoder(folder).activation == expected
    # sentence-transformers' own file comes first.
    edit_json(folder / "config_sentence_transformers.json", model_type="CrossEncoder", activation_fn="torch.nn.Softmax")
    assert read_cross_encoder(folder).activation == "softmax"


@pytest.mark.parametrize("activation", ["torch.nn.modules.activation.GELU", "my.module.Sigmoid", "Sigmoid"])
def test_an_unknown_activation_is_refused_by_name(activation: str, tmp_path: Path) -> None:
    folder = copy_reranker("bert", tmp_path, sbert_ce_default_activation_function=activation)
    with pytest.raises(ModelNotFoundError, match=f"scores by '{activation}'.*with activation="):
        read_cross_encoder(folder)
    assert read_cross_encoder(folder, activation="tanh").activation == "tanh"


def test_several_labels_are_not_squashed(tmp_path: Path) -> None:
    folder = copy_reranker("bert_labels", tmp_path)
    (folder / "config_sentence_transformers.json").unlink()
    checkpoint = read_cross_encoder(folder)
    assert (checkpoint.scores, checkpoint.activation) == (3, "identity")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "albert"}, "rerankers of the architecture 'albert' are not supported; supported are bert"),
        ({"architectures": ["BertModel"]}, "has the architecture BertModel, not one that ends in"),
        ({"architectures": None}, "has the architecture of no class"),
        ({"auto_map": {"AutoModel": "modeling.OddModel"}}, "needs custom code"),
        (
            {"auto_map": {"AutoModelForSequenceClassification": "modeling.Odd"}},
            "needs custom code .modeling.Odd.*scores",
        ),
        ({"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}, "language model that nothing says"),
    ],
    ids=["model_type", "architecture", "none", "code", "code of the head", "language model"],
)
def test_other_checkpoints_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = copy_reranker("bert", tmp_path, **changes)
    with pytest.raises(ModelNotFoundError, match=message):
        read_cross_encoder(folder)


def test_a_language_model_that_answers_otherwise(tmp_path: Path) -> None:
    folder = copy_reranker("bert", tmp_path, model_type="llama", architectures=["LlamaForCausalLM"])
    (folder / "modules.json").write_text(
        f'[{{"type": "{MODULE}", "path": ""}}, {{"type": "x.LogitScore", "path": "1"}}]'
    )
    with pytest.raises(ModelNotFoundError, match="only Qwen3-Reranker is supported"):
        read_cross_encoder(folder)


def test_modules_after_the_transformer(tmp_path: Path) -> None:
    folder = copy_reranker("bert", tmp_path)
    edit_json(folder / "config_sentence_transformers.json", model_type="CrossEncoder")
    (folder / "modules.json").write_text(f'[{{"type": "{MODULE}", "path": ""}}, {{"type": "x.Dense", "path": "1"}}]')
    with pytest.raises(ModelNotFoundError, match="BertForSequenceClassification"):
        read_cross_encoder(folder)


def test_settings_of_the_transformer(tmp_path: Path) -> None:
    folder = copy_reranker("roberta", tmp_path)
    edit_json(folder / "sentence_bert_config.json", max_seq_length=20)
    assert read_cross_encoder(folder).max_tokens == 20
    edit_json(folder / "sentence_bert_config.json", transformer_task="fill-mask")
    with pytest.raises(ModelNotFoundError, match="transformer_task = 'fill-mask'"):
        read_cross_encoder(folder)


def test_a_prompt_before_every_pair(tmp_path: Path) -> None:
    folder = copy_reranker("roberta", tmp_path)
    edit_json(folder / "config_sentence_transformers.json", prompts={"web": "Rank: "}, default_prompt_name="web")
    with pytest.raises(ModelNotFoundError, match="prompt 'web' before every pair"):
        read_cross_encoder(folder)


def test_weights_without_a_head(tmp_path: Path) -> None:
    folder = copy_reranker("bert", tmp_path)
    (folder / "model.safetensors").write_bytes((GOLDEN / "bert" / "model" / "model.safetensors").read_bytes())
    with pytest.raises(ModelNotFoundError, match=r"no matrix (pooler\.dense|classifier)\.weight"):
        read_cross_encoder(folder)


def test_no_room_for_texts(tmp_path: Path) -> None:
    folder = copy_reranker("bert", tmp_path)
    edit_json(folder / "tokenizer_config.json", model_max_length=3)
    with pytest.raises(ModelNotFoundError, match="leave no room for text"):
        load_pair_tokenizer(read_cross_encoder(folder))
    folder = copy_reranker("qwen3_reranker", tmp_path, max_position_embeddings=64)
    with pytest.raises(ModelNotFoundError, match="leave no room"):
        load_pair_tokenizer(read_cross_encoder(folder))


def test_answers_that_the_vocabulary_lacks(tmp_path: Path) -> None:
    folder = copy_reranker("qwen3_reranker", tmp_path)
    shutil.copy(GOLDEN / "qwen3" / "model" / "tokenizer.json", folder)
    with pytest.raises(ModelNotFoundError, match="lacks one of the tokens no, yes"):
        find_words(read_cross_encoder(folder))


@pytest.mark.parametrize("ids", [{"true_token_id": None, "false_token_id": 5}, {"true_token_id": -1}], ids=["no", "-1"])
def test_damaged_answers(ids: dict[str, Any], tmp_path: Path) -> None:
    folder = copy_reranker("qwen3_reranker", tmp_path)
    edit_json(folder / "1_LogitScore" / "config.json", **ids)
    with pytest.raises(ModelNotFoundError, match="names no token for the answer yes"):
        read_cross_encoder(folder)


def test_a_language_models_files_as_sentence_transformers_saves_them(tmp_path: Path) -> None:
    """As in Qwen3-Reranker and zerank since sentence-transformers 5.4: the default prompt is the instruction."""
    folder = copy_reranker("qwen3_reranker", tmp_path)
    (folder / "README.md").unlink()
    (folder / "modules.json").write_text(
        f'[{{"type": "{MODULE}", "path": ""}}, {{"type": "x.LogitScore", "path": "1_LogitScore"}}]'
    )
    output = {"method": "forward", "method_output_name": "logits"}
    edit_json(
        folder / "sentence_bert_config.json",
        transformer_task="text-generation",
        modality_config={"text": output, "message": {**output, "format": "flat"}},
        module_output_name="causal_logits",
        processing_kwargs={"chat_template": {"add_generation_prompt": True}},
    )
    edit_json(
        folder / "config_sentence_transformers.json",
        model_type="CrossEncoder",
        activation_fn="torch.nn.modules.linear.Identity",
        prompts={"query": "Find water"},
        default_prompt_name="query",
    )
    edit_json(folder / "1_LogitScore" / "config.json", true_token_id=7, false_token_id=5)
    checkpoint = read_cross_encoder(folder)
    assert checkpoint.asks is not None
    assert (checkpoint.asks.instruction, checkpoint.activation) == ("Find water", "identity")
    assert checkpoint.word_ids == (5, 7)


class TestEmbeddingModels:
    """A language model's folder may be either."""

    def test_an_embedder_of_the_same_class(self, tmp_path: Path) -> None:
        folder = copy_reranker("qwen3_reranker", tmp_path)
        (folder / "README.md").write_text("---\nbase_model: Qwen/Qwen3-Embedding-0.6B\n---\n", encoding="utf-8")
        assert read_checkpoint(folder).pooling == ("lasttoken",)
        with pytest.raises(ModelNotFoundError, match="is an embedding model"):
            read_cross_encoder(folder)

    @pytest.mark.parametrize(
        "card",
        [
            "base_model: Qwen/Qwen3-Reranker-0.6B",
            "base_model:\n- Qwen/Qwen3-0.6B-Base\npipeline_tag: text-ranking",
        ],
        ids=["base model", "tag"],
    )
    def test_a_reranker_by_its_card(self, card: str, tmp_path: Path) -> None:
        folder = copy_reranker("qwen3_reranker", tmp_path)
        (folder / "README.md").write_text(f"---\n{card}\n---\n", encoding="utf-8")
        assert read_cross_encoder(folder).asks is not None
        with pytest.raises(ModelNotFoundError, match="is a reranker"):
            read_checkpoint(folder)

    def test_a_reranker_by_its_repository(self, tmp_path: Path) -> None:
        folder = copy_reranker("qwen3_reranker", tmp_path)
        (folder / "README.md").unlink()
        repo = "mlx-community/Qwen3-Reranker-0.6B-4bit"
        assert read_cross_encoder(folder, repo=repo).asks is not None
        with pytest.raises(ModelNotFoundError, match="is a reranker"):
            read_checkpoint(folder, repo=repo)
        with pytest.raises(ModelNotFoundError, match="language model that nothing says is a reranker"):
            read_cross_encoder(folder)


def test_downloading_takes_either_kind() -> None:
    assert download_model(str(reranker_dir())) == reranker_dir().resolve()
