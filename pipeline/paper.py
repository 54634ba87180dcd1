"""Constants of the CLIP paper (Radford et al. 2021, arXiv 2103.00020), each with its source and how it was confirmed.

This module contains only data. No other module writes down a number of the paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Mark(StrEnum):
    """How a constant was confirmed; a report prints a MEMORY constant as "unconfirmed"."""

    VERIFIED = "V"
    """Read in a copy of the paper or in its released code."""
    SECOND_HAND = "S"
    """Read in another publication that cites the paper."""
    MEMORY = "M"
    """Written from memory and not confirmed."""


@dataclass(frozen=True)
class Fact(Generic[T]):
    """One constant with its value, the section or table that it comes from, and its mark."""

    value: T
    source: str
    mark: Mark


class TrainingTime(NamedTuple):
    """The training time of a model in days, and the number of V100 GPUs used."""

    days: int
    num_gpus: int


class ModelSizes(NamedTuple):
    """The sizes in which the paper's models differ, besides their image towers."""

    embed_dim: int
    image_size: int
    text_width: int
    text_heads: int


# Training: sections 2.3 to 2.5, tables 18 and 19
GLOBAL_BATCH_SIZE = Fact(32_768, "section 2.5, table 18", Mark.VERIFIED)
EPOCHS = Fact(32, "section 2.5, table 18", Mark.VERIFIED)
WEIGHT_DECAY = Fact(0.2, "table 18", Mark.VERIFIED)
WARMUP_STEPS = Fact(2_000, "table 18", Mark.MEMORY)
ADAM_BETA1 = Fact(0.9, "table 18", Mark.VERIFIED)
ADAM_BETA2_RN = Fact(0.999, "table 18", Mark.VERIFIED)
ADAM_BETA2_VIT = Fact(0.98, "table 18", Mark.VERIFIED)
ADAM_EPSILON_RN = Fact(1e-8, "table 18", Mark.VERIFIED)
ADAM_EPSILON_VIT = Fact(1e-6, "table 18", Mark.VERIFIED)
LEARNING_RATES: Mapping[str, Fact[float]] = {
    "RN50": Fact(5e-4, "table 19", Mark.MEMORY),
    "RN101": Fact(5e-4, "table 19", Mark.MEMORY),
    "RN50x4": Fact(5e-4, "table 19", Mark.MEMORY),
    "RN50x16": Fact(4e-4, "table 19", Mark.MEMORY),
    "RN50x64": Fact(3.6e-4, "table 19", Mark.MEMORY),
    "ViT-B/32": Fact(5e-4, "table 20", Mark.MEMORY),
    "ViT-B/16": Fact(5e-4, "table 20", Mark.MEMORY),
    "ViT-L/14": Fact(4e-4, "table 20", Mark.MEMORY),
    "ViT-L/14@336px": Fact(2e-5, "table 20", Mark.VERIFIED),
}
EPOCHS_AT_336_PIXELS = Fact(1, "section 2.5: continues from the final weights of ViT-L/14", Mark.VERIFIED)
TRAINING_TIMES: Mapping[str, Fact[TrainingTime]] = {
    "RN50x64": Fact(TrainingTime(18, 592), "section 2.5", Mark.VERIFIED),
    "ViT-L/14": Fact(TrainingTime(12, 256), "section 2.5", Mark.VERIFIED),
}
INITIAL_TEMPERATURE = Fact(0.07, "section 2.5, table 18", Mark.VERIFIED)
MAX_LOGIT_SCALE = Fact(100.0, "section 2.5, table 18", Mark.VERIFIED)

# Models: sections 2.4 and 2.5, tables 19 and 20, released code; the depths and widths of image towers come from timm
_TABLES = "tables 19 and 20, released code"
MODEL_SIZES: Mapping[str, Fact[ModelSizes]] = {
    "RN50": Fact(ModelSizes(1024, 224, 512, 8), _TABLES, Mark.VERIFIED),
    "RN101": Fact(ModelSizes(512, 224, 512, 8), _TABLES, Mark.VERIFIED),
    "RN50x4": Fact(ModelSizes(640, 288, 640, 10), _TABLES, Mark.VERIFIED),
    "RN50x16": Fact(ModelSizes(768, 384, 768, 12), _TABLES, Mark.VERIFIED),
    "RN50x64": Fact(ModelSizes(1024, 448, 1024, 16), _TABLES, Mark.VERIFIED),
    "ViT-B/32": Fact(ModelSizes(512, 224, 512, 8), _TABLES, Mark.VERIFIED),
    "ViT-B/16": Fact(ModelSizes(512, 224, 512, 8), _TABLES, Mark.VERIFIED),
    "ViT-L/14": Fact(ModelSizes(768, 224, 768, 12), _TABLES, Mark.VERIFIED),
    "ViT-L/14@336px": Fact(ModelSizes(768, 336, 768, 12), _TABLES, Mark.VERIFIED),
}
TEXT_LAYERS = Fact(12, _TABLES, Mark.VERIFIED)

# Text: section 2.4 and the released code (section 2.4 gives 49,152 entries and length 76)
VOCAB_SIZE = Fact(49_408, "section 2.4, released code", Mark.VERIFIED)
CONTEXT_LENGTH = Fact(77, "section 2.4, released code", Mark.VERIFIED)

# Initial values of the text tower: released code
TOKEN_EMBEDDING_STD = Fact(0.02, "released code", Mark.VERIFIED)
POSITION_EMBEDDING_STD = Fact(0.01, "released code", Mark.VERIFIED)

# Images: released code
IMAGE_MEAN = Fact((0.48145466, 0.4578275, 0.40821073), "released code", Mark.VERIFIED)
IMAGE_STD = Fact((0.26862954, 0.26130258, 0.27577711), "released code", Mark.VERIFIED)

# Corpus: section 2.2
NUM_PAIRS = Fact(400_000_000, "section 2.2", Mark.SECOND_HAND)
NUM_QUERIES = Fact(500_000, "section 2.2", Mark.SECOND_HAND)
MAX_PAIRS_PER_QUERY = Fact(20_000, "section 2.2", Mark.SECOND_HAND)
MIN_WORD_COUNT = Fact(100, "section 2.2", Mark.SECOND_HAND)

# Overlap with evaluation sets: section 5, figure 17, appendix C
DETECTOR_TEMPERATURE = Fact(0.07, "appendix C", Mark.MEMORY)
DETECTOR_BATCH_SIZE = Fact(1_712, "appendix C", Mark.MEMORY)
DETECTOR_NUM_IMAGES = Fact(30_000_000, "appendix C", Mark.MEMORY)
OVERLAP_CONFIDENCE = Fact(0.995, "section 5", Mark.VERIFIED)
OVERLAP_NUM_SETS = Fact(35, "section 5", Mark.VERIFIED)
OVERLAP_NUM_SETS_WITHOUT = Fact(9, "section 5", Mark.VERIFIED)
OVERLAP_MEDIAN_SHARE = Fact(0.022, "section 5", Mark.VERIFIED)
OVERLAP_MEAN_SHARE = Fact(0.032, "section 5", Mark.VERIFIED)
OVERLAP_NUM_SETS_MOVED = Fact(7, "section 5: by more than 0.1 points", Mark.VERIFIED)

# The published reconstruction of the query list: MetaCLIP (Xu et al. 2024, arXiv 2309.16671), section 3 and its code
METACLIP_MIN_WORD_COUNT = Fact(100, "MetaCLIP, section 3.1", Mark.SECOND_HAND)
METACLIP_MIN_PMI_BITS = Fact(30.0, "MetaCLIP, section 3.1", Mark.SECOND_HAND)
METACLIP_MIN_TITLE_VIEWS = Fact(70, "MetaCLIP, section 3.1", Mark.SECOND_HAND)
METACLIP_MIN_HOURLY_VIEWS = Fact(50, "MetaCLIP, section 3.1", Mark.SECOND_HAND)
