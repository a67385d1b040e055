"""Test a checkpoint: mmseg's command line, with infobatch_mm imported.

Importing infobatch_mm first registers its parts and lets `mmseg::` bases be
found with either family of OpenMMLab packages. A checkpoint of a pruned run
may as well be tested with the stock config: its keys are the same.
"""

import infobatch_mm  # noqa: F401  isort: skip

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS, init_default_scope
from mmengine.runner import Runner

from infobatch_mm.config import type_name


def build_parser() -> argparse.ArgumentParser:
    """Declare the flags, the same as those of mmseg's tools/test.py."""
    parser = argparse.ArgumentParser(description='Test a checkpoint')
    parser.add_argument('config', help='path of the config')
    parser.add_argument('checkpoint', help='path of the checkpoint')
    parser.add_argument(
        '--work-dir',
        help='folder of the metrics, as json '
        "(default: the config's, else ./work_dirs/CONFIG_NAME)",
    )
    parser.add_argument(
        '--out',
        help='folder of the predicted label maps; '
        'for mmpretrain, the pickle file of the predictions',
    )
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
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='settings that replace those of the config; lists and tuples '
        'are quoted and hold no white space, as in key="[(a,b),(c,d)]"',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the processes (default: none)',
    )
    parser.add_argument(
        '--tta', action='store_true', help='augment at test time'
    )
    # torch.distributed.launch spells it --local-rank from PyTorch 2.0 on.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; sets LOCAL_RANK where no launcher did."""
    args = build_parser().parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


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
            interval=1,
        )
        return
    hook.draw = True
    if args.show:
        hook.show = True
        hook.wait_time = args.wait_time
    if args.show_dir:
        cfg.visualizer.save_dir = args.show_dir


def augment_at_test_time(cfg: Config) -> None:
    """Wrap the model and the test pipeline as the config's tta_* say."""
    if cfg.get('default_scope') == 'mmpretrain':
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
    if cfg.get('default_scope') == 'mmpretrain':
        known = cfg.test_evaluator
        dump = dict(type='DumpResults', out_file_path=out)
        metrics = known if isinstance(known, list) else [known]
        cfg.test_evaluator = [*metrics, dump]
    else:
        cfg.test_evaluator.update(output_dir=out, keep_results=True)


def load_config(args: argparse.Namespace) -> Config:
    """Read the config and apply the command line to it."""
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = f'./work_dirs/{Path(args.config).stem}'
    cfg.load_from = args.checkpoint
    if args.show or args.show_dir:
        draw_predictions(cfg, args)
    if args.tta:
        augment_at_test_time(cfg)
    if args.out is not None:
        keep_predictions(cfg, args.out)
    return cfg


def build_runner(cfg: Config) -> Runner:
    """Build mmengine's Runner, or the one that `runner_type` names."""
    if 'runner_type' not in cfg:
        return Runner.from_cfg(cfg)
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    return RUNNERS.build(cfg)


def main(argv: Sequence[str] | None = None) -> None:
    """Test; a setting that cannot work ends with one line, exit status 2."""
    args = parse_args(argv)
    try:
        cfg = load_config(args)
    except ValueError as error:
        build_parser().error(str(error))
    build_runner(cfg).test()


if __name__ == '__main__':
    main()
