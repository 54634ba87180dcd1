"""Classify your own images into labels that you choose, with a trained model.

`python -m jobs.classify pictures/ --model runs/demo/pretrain/model --labels "a dog" "a cat" --picture out.png`

The images are files, or folders that are searched recursively. After a list of labels, write `--` before the images.
"""

from __future__ import annotations

from dataclasses import dataclass

from jobs.options.launch import launch
from jobs.options.own_images import OwnImagesJob, refuse_unreadable
from pipeline.eval.own_pictures.contact_sheet import draw_guesses
from pipeline.eval.own_pictures.own_texts import build_labels, check_labels, guess
from pipeline.eval.sets.prompts import SLOT


@dataclass(frozen=True, kw_only=True)
class ClassifyJob(OwnImagesJob):
    """Print the probability of each label for each image: python -m jobs.classify IMAGE... --model M --labels A B"""

    labels: tuple[str, ...] = ()
    """The labels to choose from, such as --labels "a dog" "a cat"."""
    template: tuple[str, ...] = (SLOT,)
    """Text into which each label is inserted, such as "a photo of a {}."; embeddings of several texts are averaged."""


def main(job: ClassifyJob) -> None:
    """Classify the images, and print and optionally draw the labels."""
    check_labels(job.labels, job.template)
    files = job.find()
    model, preprocess, tokenize = job.load()
    classifier = build_labels(model, tokenize, job.labels, job.template, job.device)
    encoded = job.encode(model, preprocess, files)
    guesses = guess(encoded.features, classifier, job.labels, model.logit_scale.exp().item())
    best = [labels[: job.top] for labels in guesses]
    for file, labels in zip(encoded.files, best, strict=True):
        print(file, *(f"{guess.probability:>8.1%}  {guess.label}" for guess in labels), sep="\n")
    if job.picture is not None:
        draw_guesses(job.picture, encoded.files, best)
    refuse_unreadable(encoded)


if __name__ == "__main__":
    launch(ClassifyJob, main, words="images")
