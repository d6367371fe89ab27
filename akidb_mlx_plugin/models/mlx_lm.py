"""List mlx-lm's architectures, and import one module of it at a time, without the rest.

mlx-lm is an optional dependency, imported when a checkpoint needs it.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from importlib import import_module
from threading import Lock
from types import ModuleType

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.installation import install_command

# Architectures for which mlx-lm uses another's module, as in its `utils.MODEL_REMAPPING`.
_SAME_AS = {
    "iquestcoder": "llama",
    "xverse": "llama",
    "phi-msft": "phixtral",
    "falcon_mamba": "mamba",
    "joyai_llm_flash": "deepseek_v3",
    "kimi_k2": "deepseek_v3",
    "minimax_m2": "minimax",
    "deepseek_v41_text": "deepseek_v41",
}
# The text-only architectures of mlx-lm 0.32.2: they determine the error where it is not installed.
_NAMES = """
Klear afm7 afmoe apertus baichuan_m1 bailing_hybrid bailing_moe bailing_moe_linear bailing_moe_v3 bitnet cohere
cohere2 dbrx deepseek deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v41 dots1 ernie4_5 ernie4_5_moe exaone exaone4
exaone_moe falcon_h1 gear gemma gemma2 gemma3n gemma4_text glm glm4 glm4_moe glm4_moe_lite glm_moe_dsa gpt2
gpt_bigcode gpt_neox gpt_oss gptj granite granitemoe granitemoehybrid helium hunyuan hunyuan_v1_dense internlm2
internlm3 iquestloopcoder jamba kimi_k3 kimi_linear laguna lfm2 lfm2_moe lille-130m llama4_text longcat_flash
longcat_flash_ngram mamba mamba2 mellum mimo mimo_v2_flash minicpm minicpm3 minimax mistral4 mixtral muse_glimmer
nanbeige nanochat nemotron nemotron-nas nemotron_h olmo olmo2 olmo3 olmo_hybrid olmoe openelm phi phi3small phimoe
phixtral plamo plamo2 plamo3 qwen qwen2_moe qwen3_5 qwen3_5_moe qwen3_moe qwen3_next recurrent_gemma rwkv7 seed_oss
smollm3 solar_open spark2_5 stablelm starcoder2 step3p5 talkie telechat3 youtu_llm
"""
MODULES = frozenset(_NAMES.split())
_NAME = re.compile(r"[\w-]+")
_import_lock = Lock()


def implements(model_type: str) -> bool:
    """Return whether mlx-lm has an architecture.

    Raises:
        ModelNotFoundError: it does, but is not installed.
    """
    if importlib.util.find_spec("mlx_lm") is None and not {model_type, _SAME_AS.get(model_type)} & MODULES:
        return False
    return import_architecture(model_type) is not None


def import_architecture(model_type: str) -> ModuleType | None:
    """Import mlx-lm's module for an architecture; None if it has none.

    Raises:
        ModelNotFoundError: mlx-lm is not installed, or the module does not work.
    """
    # It comes from a file that may be untrusted.
    if not _NAME.fullmatch(model_type):
        return None
    module = import_part(_SAME_AS.get(model_type, model_type))
    return module if hasattr(module, "Model") and hasattr(module, "ModelArgs") else None


def import_part(part: str) -> ModuleType | None:
    """Import one module of `mlx_lm.models`, without the rest of mlx-lm; None if there is no such module.

    Importing `mlx_lm` itself takes seconds, because it imports transformers, and permanently lowers the process's open
    file limit. Its architectures need neither, so a stub replaces the package while one of them is imported.

    Raises:
        ModelNotFoundError: mlx-lm is not installed, or the module does not work.
    """
    with _import_lock:
        package = importlib.util.find_spec("mlx_lm")
        if package is None or package.submodule_search_locations is None:
            raise ModelNotFoundError(
                f"architecture {part!r} needs mlx-lm, which is not installed: {install_command('lm')}"
            )
        stand_in = "mlx_lm" not in sys.modules
        if stand_in:
            sys.modules["mlx_lm"] = module = ModuleType("mlx_lm")
            module.__path__ = list(package.submodule_search_locations)
        try:
            name = f"mlx_lm.models.{part}"
            return import_module(name) if importlib.util.find_spec(name) else None
        except (ImportError, SystemExit) as error:  # one of its modules exits if a dependency is missing
            raise ModelNotFoundError(f"mlx-lm's {part} cannot be imported: {error}") from error
        finally:
            if stand_in:
                del sys.modules["mlx_lm"]
