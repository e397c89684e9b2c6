"""Measure how many images a second the input of training delivers, for every augmentation, without a model."""

import argparse
import os
from pathlib import Path

from dh_keras.commands.parser import make_parser, run_script
from dh_keras.config.load import DEFAULT_CONFIG, load_config


def parse() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="YAML file")
    parser.add_argument("--annotations", required=True, metavar="PATH", help="COCO JSON file")
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of photographs")
    parser.add_argument("--tfrecords", metavar="PATTERN", help="the same images in TFRecord files, to compare")
    parser.add_argument("--count", type=int, default=400, help="images for each measurement")
    return parser


def main(args: argparse.Namespace) -> None:
    data = load_config(args.config, args.overrides).data
    from dh_keras.benchmark.input_speed import augmentations, measure_input
    from dh_keras.data.formats.coco import load_coco
    from dh_keras.data.formats.tfrecord import load_tfrecords

    sources = {"folder": load_coco(args.annotations, args.images)}
    if args.tfrecords:
        sources["tfrecords"] = load_tfrecords(args.tfrecords, val_annotations=args.annotations)
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before; short side {data.min_size}, "
        f"long side at most {data.max_size}, batch {data.batch_size}"
    )
    print(f"{'source':<10} {'augmentation':<32} {'images/s':>9} {'CPU ms/image':>13}")
    for source, dataset in sources.items():
        for name, settings in augmentations(data).items():
            speed, used = measure_input(dataset, settings, images=args.count, seed=0)
            print(f"{source:<10} {name:<32} {speed:>9.1f} {used * 1000:>13.1f}", flush=True)
    print(f"load {os.getloadavg()[0]:.1f} after, with this measurement in it")


if __name__ == "__main__":
    run_script(main, parse())
