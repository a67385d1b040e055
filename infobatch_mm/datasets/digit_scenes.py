"""Segmentation scenes of real handwritten digits, with no download."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from mmengine.registry import DATASETS
from mmseg.datasets import BaseSegDataset

_SPLITS = ('train', 'val')
_NUM_TRAIN_DIGITS = 1437  # of 1797, in file order; the rest are val's
_INK = 0.4  # a pixel with at least this share of ink carries the label


@functools.cache
def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Read scikit-learn's digits: ink (N, 8, 8) in 0 to 1, label (N,)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            'DigitScenes draws on the digits that scikit-learn ships; '
            'run `pip install scikit-learn`'
        ) from error
    digits = load_digits()
    ink = (digits.images / 16).astype(np.float32)
    return ink, digits.target.astype(np.uint8)


@DATASETS.register_module()
class DigitScenes(BaseSegDataset):
    """Scenes composed on the fly from scikit-learn's handwritten digits.

    One to six digits lie on a textured background; each pixel of their
    strokes carries the digit's class, all others are background. Every scene
    draws a difficulty of its own: easy ones are one bold digit on a plain
    ground, hard ones are crowded, noisy, low in contrast, crossed by strokes
    that are not digits, and partly hidden.

    Unlike :class:`BaseSegDataset` there are no files, so the pipeline needs
    no ``LoadImageFromFile`` and no ``LoadAnnotations``. Invariants: a scene
    depends on ``(seed, split, size, index)`` alone, so that it is the same
    whenever and in whichever worker it is fetched; no digit of one split
    appears in the other.

    Args:
        split (str): 'train' or 'val'.
        num_scenes (int): Number of scenes. Defaults to 1024.
        size (int): Height and width of a scene in pixels, at least 32.
            Defaults to 64.
        seed (int): Seed of the scenes, at least 0. Defaults to 0.
        near_duplicates (float): Share of the scenes, in [0, 1], of which ten
            at a time differ in their noise alone. Defaults to 0.
        digit_odds (Sequence[float], optional): How often each of the ten
            digits is drawn, relative to the others. Defaults to None, as
            often as it occurs among the source digits.
        cached (bool): Compose all scenes at once and keep them in memory,
            four bytes a pixel. Defaults to False, composed when fetched.
        pipeline (Sequence[dict | Callable]): Transforms that follow the
            composition. Defaults to ().
    """

    METAINFO = dict(
        classes=(
            'background',
            '0',
            '1',
            '2',
            '3',
            '4',
            '5',
            '6',
            '7',
            '8',
            '9',
        ),
        palette=[
            [0, 0, 0],
            [230, 25, 75],
            [60, 180, 75],
            [255, 225, 25],
            [0, 130, 200],
            [245, 130, 48],
            [145, 30, 180],
            [70, 240, 240],
            [240, 50, 230],
            [210, 245, 60],
            [250, 190, 212],
        ],
    )

    def __init__(
        self,
        split: str,
        *,
        num_scenes: int = 1024,
        size: int = 64,
        seed: int = 0,
        near_duplicates: float = 0.0,
        digit_odds: Sequence[float] | None = None,
        cached: bool = False,
        pipeline: Sequence[dict | Callable] = (),
    ) -> None:
        if split not in _SPLITS:
            raise ValueError(f'split must be one of {_SPLITS}, got {split!r}')
        for name, value, least in (
            ('num_scenes', num_scenes, 1),
            ('size', size, 32),
            ('seed', seed, 0),
        ):
            if not isinstance(value, int) or value < least:
                raise ValueError(
                    f'{name} must be an integer of at least '
                    f'{least}, got {value!r}'
                )
        if not 0 <= near_duplicates <= 1:
            raise ValueError(
                f'near_duplicates={near_duplicates} is not a share in [0, 1]'
            )
        if digit_odds is not None and (
            len(digit_odds) != 10 or min(digit_odds) <= 0
        ):
            raise ValueError(
                'digit_odds needs ten positive numbers, one a digit, got '
                f'{digit_odds}'
            )
        self.near_duplicates = near_duplicates
        self.digit_odds = digit_odds
        self.split = split
        self.num_scenes = num_scenes
        self.size = size
        self.seed = seed
        self.cache: list[dict[str, np.ndarray]] = []
        if cached:
            self.cache = [self.compose(index) for index in range(num_scenes)]
        super().__init__(pipeline=list(pipeline))

    @property
    def digit_ids(self) -> range:
        """Indices of the source digits that this split may use."""
        num_digits = len(_load_digits()[1])
        return (
            range(_NUM_TRAIN_DIGITS)
            if self.split == 'train'
            else range(_NUM_TRAIN_DIGITS, num_digits)
        )

    def load_data_list(self) -> list[dict]:
        """Name the scenes; their pixels are composed when fetched."""
        return [
            dict(
                img_path=f'digits/{self.split}/{index:05d}',
                label_map=None,
                reduce_zero_label=False,
                seg_fields=[],
            )
            for index in range(self.num_scenes)
        ]

    def prepare_data(self, idx: int) -> Any:
        """Compose scene ``idx`` and run the pipeline on it."""
        results = self.get_data_info(idx)
        scene = self._scene(results['sample_idx'])
        results.update({name: array.copy() for name, array in scene.items()})
        results['seg_fields'].append('gt_seg_map')
        results['img_shape'] = results['ori_shape'] = (self.size, self.size)
        return self.pipeline(results)

    def _scene(self, index: int) -> dict[str, np.ndarray]:
        """Compose a scene, or take it from the cache."""
        return self.cache[index] if self.cache else self.compose(index)

    def source(self, index: int) -> int:
        """Return the scene that a scene is a near duplicate of, or itself."""
        duplicates = round(self.near_duplicates * self.num_scenes)
        return index - index % 10 if index < duplicates else index

    def compose(self, index: int) -> dict[str, np.ndarray]:
        """Compose one scene.

        Args:
            index (int): Index of the scene.

        Returns:
            dict: ``img`` uint8 (size, size, 3) in BGR and ``gt_seg_map``
            uint8 (size, size).
        """
        source = self.source(index)
        rng = self._rng(source)
        # Cubed: easy scenes are the majority, as in most data sets.
        difficulty = float(rng.random() ** 3)
        img = _background(rng, self.size, difficulty)
        ground = float(img.mean())
        _draw_strokes(rng, img, round(8 * difficulty * rng.random()))
        gt_seg_map = np.zeros((self.size, self.size), dtype=np.uint8)
        for _ in range(1 + round(5 * difficulty * rng.random())):
            self._add_digit(rng, img, gt_seg_map, difficulty, ground)
        _occlude(rng, img, gt_seg_map, difficulty)
        if index != source:
            rng = self._rng(index)
        noise = rng.standard_normal((self.size, self.size, 1), np.float32)
        img += (2 + 22 * difficulty) * noise
        return dict(
            img=np.clip(img, 0, 255).astype(np.uint8), gt_seg_map=gt_seg_map
        )

    def _rng(self, index: int) -> np.random.Generator:
        return np.random.default_rng(
            [self.seed, _SPLITS.index(self.split), index]
        )

    def _draw_digit(self, rng: np.random.Generator) -> int:
        """Draw one of this split's digits."""
        if self.digit_odds is None:
            return self.digit_ids[rng.integers(len(self.digit_ids))]
        labels = _load_digits()[1][self.digit_ids]
        odds = np.asarray(self.digit_odds)[labels]
        return rng.choice(self.digit_ids, p=odds / odds.sum())

    def _add_digit(
        self,
        rng: np.random.Generator,
        img: np.ndarray,
        gt_seg_map: np.ndarray,
        difficulty: float,
        ground: float,
    ) -> None:
        """Lay one digit of this split over the scene, in place."""
        images, labels = _load_digits()
        digit = self._draw_digit(rng)
        ink = _place(rng, images[digit], self.size, difficulty)[..., None]
        contrast = (200 - 120 * difficulty) * (1 if ground < 128 else -1)
        color = ground + contrast * rng.uniform(0.7, 1.0, 3)
        img += ink * (color.astype(np.float32) - img)
        gt_seg_map[ink[..., 0] >= _INK] = 1 + labels[digit]


def _background(
    rng: np.random.Generator, size: int, difficulty: float
) -> np.ndarray:
    """Draw a dark, seldom bright, ground (size, size, 3) with texture."""
    level = rng.uniform(10, 60)
    if rng.random() < difficulty / 2:
        level = 255 - level
    cells = 3 + int(5 * difficulty)
    coarse = rng.standard_normal((cells, cells, 3), dtype=np.float32)
    texture = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.float32(level) + np.float32(5 + 22 * difficulty) * texture


def _draw_strokes(
    rng: np.random.Generator, img: np.ndarray, count: int
) -> None:
    """Draw lines that look like ink and carry no label, in place."""
    ends = rng.integers(0, len(img), (count, 2, 2)).tolist()
    colors = rng.uniform(30, 225, (count, 3)).tolist()
    for (start, end), color in zip(ends, colors, strict=True):
        cv2.line(img, start, end, color, int(rng.integers(1, 4)), cv2.LINE_AA)


def _place(
    rng: np.random.Generator, digit: np.ndarray, size: int, difficulty: float
) -> np.ndarray:
    """Scale, turn and shift a digit (8, 8) onto a canvas (size, size)."""
    extent = size * (0.75 - 0.3 * difficulty + rng.uniform(-0.05, 0.05))
    angle = rng.normal(0, 3 + 12 * difficulty)
    matrix = cv2.getRotationMatrix2D((3.5, 3.5), angle, extent / 8)
    reach = (0.3 + 0.7 * difficulty) * (size - extent) / 2
    matrix[:, 2] += size / 2 - 3.5 + rng.uniform(-reach, reach, 2)
    ink = cv2.warpAffine(digit, matrix, (size, size), flags=cv2.INTER_CUBIC)
    return ink.clip(0, 1)


def _occlude(
    rng: np.random.Generator,
    img: np.ndarray,
    gt_seg_map: np.ndarray,
    difficulty: float,
) -> None:
    """Hide parts of the scene under flat patches, in place."""
    for _ in range(round(3 * difficulty * rng.random())):
        height, width = rng.integers(len(img) // 10, len(img) // 4, 2)
        top, left = rng.integers(0, len(img) - len(img) // 4, 2)
        patch = np.s_[top : top + height, left : left + width]
        img[patch] = rng.uniform(30, 225, 3)
        gt_seg_map[patch] = 0
