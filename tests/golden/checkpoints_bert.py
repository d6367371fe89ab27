"""Tiny checkpoints of BERT's relatives: other names and shapes, biases by position, padding tokens in texts."""

from __future__ import annotations

import torch
import transformers
from reference_jina_bert import JinaBertModel, PostNormJinaBertModel
from tiny import BERT, ROBERTA, SHORT, SIZES, Tiny
from tiny_tokenizers import (
    albert_tokenizer,
    bert_tokenizer,
    mpnet_tokenizer,
    roberta_tokenizer,
    t5_tokenizer,
    xlm_roberta_tokenizer,
)

MEAN, CLS = {"pooling_mode": "mean"}, {"pooling_mode": "cls"}
MPNET = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "[UNK]", "mask_token": "<mask>"}
T5 = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
ALBERT = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "<pad>", "unk_token": "<unk>"}
# Texts so long that the farthest buckets of a relative position are reached, and positions round up past the table.
LONG = (2, 3, 5, 9, 17, 33, 65, 99, 130, 150, 190, 200, 230)
PADS = ("<pad>", "stone <pad> river", "<pad><pad> water <pad>", "paper <pad> " * 30, "music light <pad>")


def checkpoints() -> dict[str, Tiny]:
    """Return the checkpoints by name."""
    return {**_renamed(), **_biased(), **_with_pads()}


def _renamed() -> dict[str, Tiny]:
    t = transformers
    distil = {
        "vocab_size": 320,
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 64,
        "max_position_embeddings": 64,
    }
    narrow = {**SIZES, "vocab_size": 320, "embedding_size": 16, "max_position_embeddings": 64}
    distiluse = ({"in_features": 32, "out_features": 20, "activation_function": torch.nn.Tanh()},)
    return {
        "distilbert": Tiny(
            t.DistilBertConfig(**distil, sinusoidal_pos_embds=True),
            bert_tokenizer,
            BERT,
            48,
            SHORT,
            MEAN,
            distiluse,
            normalize=False,
            build=t.DistilBertForMaskedLM,
        ),
        "distilbert_relu": Tiny(
            t.DistilBertConfig(**distil, activation="relu"),
            bert_tokenizer,
            BERT,
            48,
            SHORT,
            CLS,
            dtype=torch.float16,
            build=t.DistilBertForSequenceClassification,
        ),
        "electra": Tiny(
            t.ElectraConfig(**narrow), bert_tokenizer, BERT, 48, SHORT, MEAN, build=t.ElectraForPreTraining
        ),
        "electra_wide": Tiny(
            t.ElectraConfig(**{**narrow, "embedding_size": 32}),
            bert_tokenizer,
            BERT,
            48,
            SHORT,
            MEAN,
            dtype=torch.bfloat16,
            build=t.ElectraForMaskedLM,
        ),
        "albert": Tiny(
            t.AlbertConfig(**{**narrow, "num_hidden_layers": 5}, num_hidden_groups=2, inner_group_num=2),
            albert_tokenizer,
            ALBERT,
            48,
            SHORT,
            MEAN,
            build=t.AlbertForPreTraining,
        ),
    }


def _biased() -> dict[str, Tiny]:
    t = transformers
    wide = {**SIZES, "vocab_size": 320, "hidden_size": 36, "num_attention_heads": 3}
    t5 = {
        "vocab_size": 320,
        "d_model": 32,
        "d_kv": 6,
        "d_ff": 48,
        "num_layers": 3,
        "num_heads": 4,
        "num_decoder_layers": 1,
    }
    project = ({"in_features": 32, "out_features": 32, "bias": False, "activation_function": torch.nn.Identity()},)
    jina = {**SIZES, "vocab_size": 320, "position_embedding_type": "alibi", "max_position_embeddings": 256}
    six_heads = {**jina, "hidden_size": 36, "num_attention_heads": 6, "emb_pooler": "mean"}
    # As published; without the code, which is not run.
    post_norm = {"_name_or_path": "jinaai/jina-bert-v2-qk-post-norm"}
    return {
        "mpnet": Tiny(
            t.MPNetConfig(**wide, max_position_embeddings=202, layer_norm_eps=1e-5),
            mpnet_tokenizer,
            MPNET,
            200,
            LONG,
            MEAN,
            build=t.MPNetForMaskedLM,
            texts=PADS,
        ),
        "t5": Tiny(t.T5Config(**t5), t5_tokenizer, T5, 200, LONG, MEAN, project),
        "t5_gated": Tiny(
            t.T5Config(
                **{**t5, "relative_attention_num_buckets": 16, "relative_attention_max_distance": 20},
                feed_forward_proj="gated-gelu",
                layer_norm_epsilon=1e-3,
            ),
            t5_tokenizer,
            T5,
            48,
            SHORT,
            MEAN,
            dtype=torch.bfloat16,
            build=t.T5EncoderModel,
        ),
        "jina_bert": Tiny(
            t.BertConfig(**six_heads, feed_forward_type="geglu"),
            bert_tokenizer,
            BERT,
            200,
            LONG,
            MEAN,
            normalize=False,
            build=JinaBertModel,
        ),
        "jina_bert_reglu": Tiny(
            t.BertConfig(**jina, feed_forward_type="reglu"),
            bert_tokenizer,
            BERT,
            48,
            SHORT,
            MEAN,
            dtype=torch.float16,
            build=JinaBertModel,
        ),
        "jina_bert_original": Tiny(
            t.BertConfig(**jina, feed_forward_type="original"),
            bert_tokenizer,
            BERT,
            48,
            SHORT,
            MEAN,
            build=JinaBertModel,
        ),
        "jina_bert_code": Tiny(
            t.BertConfig(**six_heads, feed_forward_type="geglu"),
            bert_tokenizer,
            BERT,
            200,
            LONG,
            MEAN,
            build=PostNormJinaBertModel,
            settings=post_norm,
        ),
        "jina_bert_code_original": Tiny(
            t.BertConfig(**jina, feed_forward_type="original"),
            bert_tokenizer,
            BERT,
            48,
            SHORT,
            MEAN,
            build=PostNormJinaBertModel,
            settings=post_norm,
        ),
    }


def _with_pads() -> dict[str, Tiny]:
    """Return checkpoints whose texts contain the padding token, which counts for no position."""
    t = transformers
    sizes = {**SIZES, "hidden_size": 24, "num_hidden_layers": 1, "max_position_embeddings": 52, "type_vocab_size": 1}
    lengths = (2, 9, 33, 50, 70)
    return {
        "roberta_pads": Tiny(t.RobertaConfig(**sizes), roberta_tokenizer, ROBERTA, 50, lengths, MEAN, texts=PADS),
        "xlm_roberta_pads": Tiny(
            t.XLMRobertaConfig(**sizes), xlm_roberta_tokenizer, ROBERTA, 50, lengths, MEAN, texts=PADS
        ),
        "camembert": Tiny(
            t.CamembertConfig(**sizes),
            xlm_roberta_tokenizer,
            ROBERTA,
            50,
            lengths,
            CLS,
            texts=PADS,
            build=t.CamembertForMaskedLM,
        ),
    }
