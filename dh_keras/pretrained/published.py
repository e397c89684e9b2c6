"""What is published: trained Double-Head R-CNNs of others, by the names that this package has for them.

The numbers are their owners'; this project has not measured them.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A published checkpoint.

    Args:
        family: whose model it is, and which.
        file: name of the file.
        address: where it is downloaded from; None where its owner has no direct link.
        page: where its owner describes it.
        sha256: the hash of the file, or its beginning if no more is published; empty where nothing is.
        licence: of the weights.
        measured: the AP that its owner publishes, and on what.
    """

    family: str
    file: str
    address: str | None
    page: str
    sha256: str
    licence: str
    measured: str


PUBLISHED = {
    "mmdetection_r50": Published(
        family="MMDetection, plain Double-Head, ResNet-50",
        file="dh_faster_rcnn_r50_fpn_1x_coco_20200130-586b67df.pth",
        address="https://download.openmmlab.com/mmdetection/v2.0/double_heads/dh_faster_rcnn_r50_fpn_1x_coco/"
        "dh_faster_rcnn_r50_fpn_1x_coco_20200130-586b67df.pth",
        page="https://github.com/open-mmlab/mmdetection/tree/main/configs/double_heads",
        sha256="586b67df",  # the end of the name, by OpenMMLab's convention
        licence="Apache-2.0",
        measured="40.0 on COCO val2017",
    ),
    "authors_r50": Published(
        family="the authors' release, extended, ResNet-50",
        file="authors_r50.pth",
        address=None,
        page="https://github.com/wuyuebupt/doubleheadsrcnn#models, link of ResNet-50-FPN",
        sha256="",
        licence="see its page",
        measured="40.3 on COCO val2017",
    ),
    "authors_r101": Published(
        family="the authors' release, extended, ResNet-101",
        file="authors_r101.pth",
        address=None,
        page="https://github.com/wuyuebupt/doubleheadsrcnn#models, link of ResNet-101-FPN",
        sha256="",
        licence="see its page",
        measured="41.9 on COCO val2017",
    ),
}
