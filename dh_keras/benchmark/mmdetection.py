"""MMDetection's Double-Head Faster R-CNN, ResNet-50-FPN, in its quickest layout on a CPU, channels last.

Imported in a process of its own only: it brings PyTorch.
"""

from typing import Any

import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.hub import get_config
from mmengine.structures import InstanceData

from dh_keras.benchmark.case import Case, make_ground_truth, make_images
from dh_keras.benchmark.process import median_ms, peak_rss_mb, product_gflops

CONFIG = "mmdet::double_heads/dh-faster-rcnn_r50_fpn_1x_coco.py"
GEMM_SIZE = 2048


def measure_inference(*, height: int, width: int, batch: int, repeats: int) -> dict:
    """See `measure_peer`. Both heads see all proposals, whatever their scores."""
    model = _build().eval()
    proposals = []
    predict = model.rpn_head.predict

    def watched(*inputs: Any, **options: Any) -> Any:
        found = predict(*inputs, **options)
        proposals[:] = [len(each) for each in found]
        return found

    model.rpn_head.predict = watched
    images = make_images(height=height, width=width, batch=batch)
    data = {"inputs": _to_torch(images), "data_samples": [_sample(height, width) for _ in range(batch)]}

    def detect() -> None:
        with torch.inference_mode():
            model.test_step(data)

    _, milliseconds = median_ms(detect, repeats=repeats)
    return {
        "name": f"mmdetection {CONFIG.partition('::')[2]}, channels last",
        "height": height,
        "width": width,
        "batch": batch,
        "precision": "float32",
        "proposals": sum(proposals) / batch,
        "total_ms": milliseconds,
    }


def measure_training(case: Case, *, repeats: int) -> dict:
    """See `measure_peer_training`. The true boxes are proposals too, the other places go to what is left over."""
    before = _gemm_gflops()
    model = _build(rois=case.rois).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-4)
    boxes, classes = make_ground_truth(case)
    samples = [
        _sample(case.height, case.width, InstanceData(bboxes=torch.tensor(own[:, [1, 0, 3, 2]]), labels=labels))
        for own, labels in zip(boxes, torch.tensor(classes, dtype=torch.int64), strict=True)
    ]
    images = make_images(height=case.height, width=case.width, batch=case.batch)

    def step() -> None:
        data = model.data_preprocessor({"inputs": _to_torch(images), "data_samples": samples}, training=True)
        data["inputs"] = data["inputs"].contiguous(memory_format=torch.channels_last)
        total, _ = model.parse_losses(model(**data, mode="loss"))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    _, milliseconds = median_ms(step, repeats=repeats)
    peak = peak_rss_mb()
    return {"total_ms": milliseconds, "gemm_gflops": max(before, _gemm_gflops()), "peak_memory_mb": peak}


def _build(rois: int = 512) -> torch.nn.Module:
    """The detector with random weights."""
    register_all_modules()
    config = get_config(CONFIG).model
    config.backbone.init_cfg = None
    config.train_cfg.rcnn.sampler.num = rois
    torch.manual_seed(0)
    return MODELS.build(config).to(memory_format=torch.channels_last)


def _sample(height: int, width: int, truth: InstanceData | None = None) -> DetDataSample:
    size = {name: (height, width) for name in ("img_shape", "ori_shape", "pad_shape", "batch_input_shape")}
    sample = DetDataSample(metainfo={**size, "scale_factor": (1.0, 1.0)})
    if truth is not None:
        sample.gt_instances = truth
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    return sample


def _to_torch(images: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(image).permute(2, 0, 1) for image in images]


def _gemm_gflops() -> float:
    """As `machine.gemm_gflops`, of PyTorch's product."""
    factor = torch.randn(GEMM_SIZE, GEMM_SIZE, generator=torch.Generator().manual_seed(1))
    return product_gflops(torch.matmul, factor)
