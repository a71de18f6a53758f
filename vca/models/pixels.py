"""Frames to the pixel tensors of a pretrained model, following its stored processor settings.

Shape letters: N frames, H and W pixels served, h and w pixels of the model.
"""

from typing import Any, Self

import numpy as np
import numpy.typing as npt

ByteArray = npt.NDArray[np.uint8]


class Pixels:
    """Resize, crop, rescale and normalise frames in torch, from a checkpoint's processor settings.

    Video processors of transformers need torchvision, which nothing else here does; the arithmetic is the same
    (antialiased `interpolate` on 0..255, rounded). Missing switches mean yes, as in the processors' base class.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    @classmethod
    def parse(cls, raw: dict[str, Any], **overrides: Any) -> Self:
        raw = raw | overrides
        keys = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
        settings: dict[str, Any] = {key: bool(raw.get(key, key != "do_center_crop")) for key in keys}
        settings["size"] = size_in_pixels(raw.get("size"), "size") if settings["do_resize"] else None
        settings["crop_size"] = (
            size_in_pixels(raw.get("crop_size"), "crop_size") if settings["do_center_crop"] else None
        )
        settings["resample"] = 2 if raw.get("resample") is None else int(raw["resample"])
        if settings["resample"] not in (0, 2, 3):
            raise ValueError(
                f"resample {settings['resample']} is not supported; use 0 nearest, 2 bilinear or 3 bicubic"
            )
        settings["scale"] = float(raw.get("rescale_factor", 1 / 255)) if settings["do_rescale"] else 1.0
        settings["offset"] = bool(raw.get("offset", False))
        if settings["do_normalize"]:
            for key in ("image_mean", "image_std"):
                values = raw.get(key)
                if not isinstance(values, list) or len(values) != 3:
                    raise ValueError(f"the processor settings have no {key} of three numbers")
                settings[key] = [float(v) for v in values]
        return cls(settings)

    def short_side(self) -> int:
        """Short side of the frames that are resized with the least loss and cost."""
        sides = self.settings["size"] or self.settings["crop_size"] or {"height": 224}
        return min(int(v) for v in sides.values())

    def __call__(self, frames: ByteArray) -> Any:
        """uint8 [N, H, W, 3] to a float tensor [N, 3, h, w]."""
        import torch
        from torch.nn.functional import interpolate, pad

        settings = self.settings
        x = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
        if settings["do_resize"]:
            size = settings["size"]
            if "shortest_edge" in size:
                short, height, width = size["shortest_edge"], x.shape[2], x.shape[3]
                target = (short, short * width // height) if height <= width else (short * height // width, short)
            else:
                target = (size["height"], size["width"])
            mode = {0: "nearest", 2: "bilinear", 3: "bicubic"}[settings["resample"]]
            x = interpolate(x, size=target, mode=mode, antialias=mode != "nearest").round_().clamp_(0, 255)
        if settings["do_center_crop"]:
            height, width = (
                settings["crop_size"].get(k) or settings["crop_size"]["shortest_edge"] for k in ("height", "width")
            )
            missing_h, missing_w = max(0, height - x.shape[2]), max(0, width - x.shape[3])
            x = pad(x, (missing_w // 2, missing_w - missing_w // 2, missing_h // 2, missing_h - missing_h // 2))
            top, left = round((x.shape[2] - height) / 2), round((x.shape[3] - width) / 2)
            x = x[:, :, top : top + height, left : left + width]
        x = x * settings["scale"]
        if settings["offset"]:
            x = x - 1.0
        if settings["do_normalize"]:
            mean, std = (torch.tensor(settings[key]).view(1, 3, 1, 1) for key in ("image_mean", "image_std"))
            x = (x - mean) / std
        return x


def size_in_pixels(value: Any, name: str) -> dict[str, int]:
    """A size as processors write it: a number, {"shortest_edge": n} or {"height": h, "width": w}."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = {"height": value, "width": value} if name == "crop_size" else {"shortest_edge": value}
    if isinstance(value, dict):
        sides = {key: value[key] for key in ("shortest_edge", "height", "width") if value.get(key) is not None}
        if set(sides) in ({"shortest_edge"}, {"height", "width"}) and all(
            isinstance(side, int) and 1 <= side <= 4096 for side in sides.values()
        ):
            return sides
    raise ValueError(f"the processor settings have no usable {name}: {value!r}")
