"""Search your own images by text, with a trained model.

`python -m jobs.search pictures/ --model runs/demo/pretrain/model --text "a red circle" --picture out.png`
"""

from __future__ import annotations

from dataclasses import dataclass

from jobs.options.launch import launch
from jobs.options.own_images import OwnImagesJob, refuse_unreadable
from pipeline.eval.own_pictures.contact_sheet import draw_matches
from pipeline.eval.own_pictures.own_texts import check_text, search


@dataclass(frozen=True, kw_only=True)
class SearchJob(OwnImagesJob):
    """Print the images most similar to a text, with the similarity: python -m jobs.search FOLDER --model M --text T"""

    text: str
    """The text to search for, such as --text "a red circle"."""


def main(job: SearchJob) -> None:
    """Encode the images, and print and optionally draw the most similar ones."""
    check_text(job.text)
    files = job.find()
    model, preprocess, tokenize = job.load()
    encoded = job.encode(model, preprocess, files)
    matches = search(model, tokenize, job.text, encoded.features, job.top, job.device)
    for match in matches:
        print(f"{match.similarity:>7.3f}  {encoded.files[match.image]}")
    if job.picture is not None:
        draw_matches(job.picture, job.text, encoded.files, matches)
    refuse_unreadable(encoded)


if __name__ == "__main__":
    launch(SearchJob, main, words="images")
