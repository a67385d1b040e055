"""The command line of testing: mmseg's and mmpretrain's.

A checkpoint of a pruned run may as well be tested with the stock config: its
keys are the same.
"""

import argparse
from collections.abc import Sequence

import mmengine
from mmengine.config import Config
from mmengine.dist import is_main_process

from ..host.classes import type_name
from . import running
from .ending import check_exists, in_one_line, is_ours

# Flags that only mmpretrain's tool has, and what does the same elsewhere.
MMPRETRAIN_FLAGS = {
    'out_item': '--out takes the label maps, and the metrics are written to '
    'the work dir as they are',
    'amp': 'use --cfg-options test_cfg.fp16=True',
    'interval': 'use --cfg-options default_hooks.visualization.interval=N',
    'no_pin_memory': 'use --cfg-options test_dataloader.pin_memory=False',
}


METRICS_FILES = ('.json', '.yaml', '.yml', '.pkl')


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Declare the flags of mmseg's and mmpretrain's tool."""
    parser = argparse.ArgumentParser(
        prog,
        description='Test a checkpoint with a config of mmseg or mmpretrain.',
    )
    running.add_config(parser)
    parser.add_argument('checkpoint', help='path of the checkpoint')
    running.add_common_flags(parser, work_dir_of='the metrics, as json')
    parser.add_argument(
        '--out',
        help='folder of the predicted label maps; '
        'for mmpretrain, the pickle file of the predictions',
    )
    add_drawing_flags(parser)
    parser.add_argument(
        '--tta', action='store_true', help='augment at test time'
    )
    add_mmpretrain_flags(parser)
    return parser


def add_drawing_flags(parser: argparse.ArgumentParser) -> None:
    """Declare what shows and saves the predictions as pictures."""
    parser.add_argument(
        '--show', action='store_true', help='show each prediction'
    )
    parser.add_argument('--show-dir', help='folder of the painted images')
    parser.add_argument(
        '--wait-time',
        type=float,
        default=2,
        help='seconds that each prediction is shown (default: 2)',
    )


def add_mmpretrain_flags(parser: argparse.ArgumentParser) -> None:
    """Declare what only mmpretrain's tool has."""
    group = parser.add_argument_group('only with configs of mmpretrain')
    group.add_argument(
        '--out-item',
        choices=['metrics', 'pred'],
        help='what --out takes (default: pred, the predictions)',
    )
    group.add_argument(
        '--amp', action='store_true', help='test in mixed precision'
    )
    group.add_argument(
        '--interval',
        type=int,
        metavar='N',
        help='show and save one image of N (default: 1, every image)',
    )
    group.add_argument(
        '--no-pin-memory',
        action='store_true',
        help='load no batch into pinned memory',
    )


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; sets LOCAL_RANK where no launcher did."""
    return running.parse(build_parser(), argv)


def draw_predictions(cfg: Config, args: argparse.Namespace) -> None:
    """Let the config's visualization hook draw, show or save."""
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise ValueError(
            '--show and --show-dir need default_hooks.visualization, which '
            'the config does not set; add '
            "visualization=dict(type='SegVisualizationHook'), or "
            "type='VisualizationHook' for mmpretrain"
        )
    if type_name(hook) == 'VisualizationHook':
        # mmpretrain's saves by itself, and by default one of 5000 images.
        hook.update(
            enable=True,
            show=args.show,
            wait_time=args.wait_time,
            out_dir=args.show_dir,
            interval=args.interval or 1,
        )
        return
    hook.draw = True
    if args.show:
        hook.show = True
        hook.wait_time = args.wait_time
    if args.show_dir:
        if cfg.get('visualizer') is None:
            raise ValueError(
                '--show-dir needs a visualizer, which the config does not '
                "set; add visualizer=dict(type='SegLocalVisualizer')"
            )
        cfg.visualizer.save_dir = args.show_dir


def augment_at_test_time(cfg: Config) -> None:
    """Wrap the model and the test pipeline as the config's tta_* say."""
    if running.is_mmpretrain(cfg):
        mirror_by_default(cfg)
    missing = [key for key in ('tta_model', 'tta_pipeline') if key not in cfg]
    if missing:
        raise ValueError(
            f'--tta needs {" and ".join(missing)}, which the '
            'config does not set; add it or leave --tta out'
        )
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.tta_model.module = cfg.model
    cfg.model = cfg.tta_model


def mirror_by_default(cfg: Config) -> None:
    """Set what a config leaves out of tta_* as mmpretrain's own tool does.

    The class scores of an image and of its mirror image are averaged.
    """
    if 'tta_model' not in cfg:
        cfg.tta_model = dict(type='mmpretrain.AverageClsScoreTTA')
    if 'tta_pipeline' not in cfg:
        *pipeline, pack = cfg.test_dataloader.dataset.pipeline
        flips = [dict(type='RandomFlip', prob=prob) for prob in (1.0, 0.0)]
        both = dict(type='TestTimeAug', transforms=[flips, [pack]])
        cfg.tta_pipeline = [*pipeline, both]


def keep_predictions(cfg: Config, out: str) -> None:
    """Let the evaluator write the predictions as the package's own does."""
    if running.is_mmpretrain(cfg):
        if not out.endswith(('.pkl', '.pickle')):
            raise ValueError(
                f'--out {out}: the predictions are written to a file that '
                'ends with .pkl or .pickle'
            )
        known = cfg.test_evaluator
        dump = dict(type='DumpResults', out_file_path=out)
        metrics = known if isinstance(known, list) else [known]
        cfg.test_evaluator = [*metrics, dump]
    else:
        known = cfg.test_evaluator
        if isinstance(known, list):  # only one of them writes label maps
            names = [type_name(metric) for metric in known]
            if 'IoUMetric' not in names:
                raise ValueError(
                    f'--out {out}: the IoUMetric writes the label maps, and '
                    f'test_evaluator has {", ".join(names)} alone. Add '
                    "dict(type='IoUMetric')"
                )
            known = known[names.index('IoUMetric')]
        known.update(output_dir=out, keep_results=True)


def load_config(args: argparse.Namespace) -> Config:
    """Read the config and apply the command line to it."""
    if args.out_item is not None and args.out is None:
        raise ValueError(
            f'--out-item {args.out_item} needs --out, the file to write it to'
        )
    if args.out_item == 'metrics' and not args.out.endswith(METRICS_FILES):
        raise ValueError(
            f'--out {args.out}: the metrics are written to a file that ends '
            f'with {", ".join(METRICS_FILES)}'
        )
    cfg = running.load_common(args)
    running.check_family(cfg, args, MMPRETRAIN_FLAGS)
    cfg.load_from = args.checkpoint
    if args.amp:
        cfg.test_cfg = {**(cfg.get('test_cfg') or {}), 'fp16': True}
    if args.show or args.show_dir:
        draw_predictions(cfg, args)
    if args.tta:
        augment_at_test_time(cfg)
    if args.out is not None and args.out_item != 'metrics':
        keep_predictions(cfg, args.out)
    if running.is_mmpretrain(cfg):
        running.set_dataloader_defaults(cfg, args)
    return cfg


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Test a checkpoint."""
    parser = build_parser(prog)
    args = running.parse(parser, argv)
    with in_one_line(parser):
        check_exists('checkpoint', args.checkpoint)
    runner = running.start(parser, args, load_config)
    with in_one_line(parser, only=is_ours):
        metrics = runner.test()
    if args.out_item == 'metrics' and is_main_process():
        mmengine.dump(metrics, args.out)
    running.leave_group()
