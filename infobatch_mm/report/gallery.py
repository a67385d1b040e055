"""The gallery of the page: samples of the training data, as trained on.

Scores and counts come from the last checkpoint, images and labels from the
training data set of the run's config.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mmengine.config import Config
from PIL import Image

from ..datasets.indexed import IndexedDataset
from . import runs
from .figures import data_address
from .samples import State, listed, load_state

IGNORED = 255  # mmseg's label of a pixel without a class
SHOWN = 8  # samples in a row of the gallery
LONGEST_SIDE = 256  # of a picture, in pixels
SHOWN_CLASSES = 4
# Mixed colours of a label map would be those of other classes.
SMOOTH, NEAREST = Image.Resampling.LANCZOS, Image.Resampling.NEAREST

NO_PRUNED = 'Left out: no sample was kept less often than another.'
NO_SCORES = 'Left out: the checkpoint is of a stock run, with no scores.'
OLD_ROUNDS = (
    'Left out: this run was recorded without {}, by an earlier version of '
    'infobatch_mm.'
)


class Swatch(NamedTuple):
    """A class of a label map, and its colour there."""

    name: str
    color: str


class Card(NamedTuple):
    """A sample in the gallery."""

    name: str
    image: str  # a data: address
    score: float
    times_kept: int | None
    label_map: str | None = None  # segmentation: a data: address too
    swatches: Sequence[Swatch] = ()  # and its largest classes
    label: str | None = None  # classification: the name of the class


def gives_bgr(cfg: Config) -> bool:
    """Tell whether the images of a config's pipeline are in BGR."""
    preprocessor = dict(cfg.get('data_preprocessor') or {})
    preprocessor.update(cfg.model.get('data_preprocessor') or {})
    turns = any(map(preprocessor.get, ('bgr_to_rgb', 'to_rgb')))
    return turns or 'LoadImageFromFile' in str(cfg.train_dataloader.dataset)


class Gallery(NamedTuple):
    """Samples of the training data, or why there are none."""

    hardest: list[Card]
    pruned_most: list[Card] | str
    rounds: int


class Shower:
    """Shows samples of a run's training data.

    Args:
        work_dir (Path): Its work directory.
        state (State): What its checkpoint knows of the samples.
    """

    def __init__(self, work_dir: Path, state: State) -> None:
        self.dataset = IndexedDataset(listed(work_dir, state))
        self.state = state
        self.bgr = gives_bgr(runs.config(work_dir))
        metainfo = self.dataset.metainfo
        self.classes: Sequence[str] = metainfo.get('classes') or ()
        # What is no class is white.
        self.colors = np.full((256, 3), 255, np.uint8)
        palette = metainfo.get('palette') or []
        self.colors[: len(palette)] = np.reshape(palette, (-1, 3))

    def cards(self, indices: Sequence[int]) -> list[Card]:
        """Show some samples, as far as they can still be read."""
        return [card for index in indices if (card := self._card(index))]

    def _card(self, index: int) -> Card | None:
        data = self.dataset[index]
        sample = data['data_samples']
        if sample.infobatch_refetched:
            return None
        image = data['inputs'].permute(1, 2, 0).numpy().astype(np.uint8)
        kept = self.state.times_kept
        card = Card(
            name=Path(sample.get('img_path') or f'sample {index}').name,
            image=_png(image[..., ::-1] if self.bgr else image, SMOOTH),
            score=self.state.scores[index].item(),
            times_kept=None if kept is None else int(kept[index]),
        )
        if 'gt_sem_seg' in sample:
            label_map = sample.gt_sem_seg.data[0].numpy()
            return card._replace(
                label_map=_png(self.colors[label_map], NEAREST),
                swatches=self._swatches(label_map),
            )
        if 'gt_label' in sample:
            names = map(self._name, sample.gt_label.tolist())
            return card._replace(label=', '.join(names))
        return card

    def _name(self, label: int) -> str:
        has_name = label < len(self.classes)
        return self.classes[label] if has_name else f'class {label}'

    def _swatches(self, label_map: np.ndarray) -> list[Swatch]:
        labels, areas = np.unique(label_map, return_counts=True)
        labels = labels[np.argsort(-areas)]
        return [
            Swatch(self._name(label), '#' + bytes(self.colors[label]).hex())
            for label in labels[labels != IGNORED][:SHOWN_CLASSES]
        ]


def last_state(work_dir: Path) -> State | str:
    """Return the samples' state in the last checkpoint, or why not."""
    if not (work_dir / 'last_checkpoint').exists():
        return 'Left out: the run has not saved a checkpoint.'
    try:
        return load_state(work_dir) or NO_SCORES
    except Exception as error:
        return _unread(error)


def gallery(work_dir: Path, state: State | str | None = None) -> Gallery | str:
    """Show the samples that are hardest and those that were pruned most."""
    state = state or last_state(work_dir)
    if isinstance(state, str):
        return state
    try:
        show = Shower(work_dir, state)
        hardest = show.cards(state.hardest[:SHOWN])
        pruned_most = show.cards(state.pruned_most[:SHOWN])
    except Exception as error:
        return _unread(error)
    if state.times_kept is None:
        reason = OLD_ROUNDS.format('how often each sample was kept')
        return Gallery(hardest, reason, state.rounds)
    return Gallery(hardest, pruned_most or NO_PRUNED, state.rounds)


def _unread(error: Exception) -> str:
    # The files may be gone, and the data set may be anybody's code. The rest
    # of the page needs neither.
    return (
        'Left out: the checkpoint or the training data could not be read '
        f'here ({type(error).__name__}: {error}).'
    )


def _png(pixels: np.ndarray, shrink: Image.Resampling) -> str:
    """Return a picture (H, W, 1 or 3) of about LONGEST_SIDE pixels."""
    shape = (*pixels.shape[:2], 3)
    image = Image.fromarray(
        np.ascontiguousarray(np.broadcast_to(pixels, shape))
    )
    # Browsers blur what they enlarge, so a small picture is enlarged here.
    factor = LONGEST_SIDE // max(image.size)
    if factor > 1:
        size = factor * image.width, factor * image.height
        image = image.resize(size, NEAREST)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), shrink)
    file = io.BytesIO()
    image.save(file, 'PNG', optimize=True)
    return data_address('image/png', file.getvalue())
