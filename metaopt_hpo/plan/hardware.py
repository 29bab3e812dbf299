"""Hardware by name: a small table of devices with where their numbers come from.

Peaks and power are the makers' data sheets: dense bfloat16 (the sheets' figures with sparsity halved) and the board's
power limit. Prices are round figures of the order of public on-demand offers of 2025, not an offer of anybody's, and
utilisations what well-tuned training of transformers reaches: say your own where you know them.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from typing import Any

from metaopt_hpo.plan.costs import Hardware, PlanError
from metaopt_hpo.plan.currencies import code_of


@dataclass(frozen=True)
class Device:
    """One device: peak in FLOP/s, watts, price in USD an hour, utilisation, and where peak and watts stand."""

    peak: float
    watts: float
    price: float
    utilisation: float
    source: str


DEVICES = {
    "b200": Device(2.25e15, 1000.0, 5.5, 0.35, "NVIDIA DGX B200 data sheet: 2.25 PFLOP/s bf16 dense, 1000 W"),
    "h200": Device(989e12, 700.0, 3.5, 0.40, "NVIDIA H200 SXM data sheet: 989 TFLOP/s bf16 dense, 700 W"),
    "h100": Device(989e12, 700.0, 3.0, 0.40, "NVIDIA H100 SXM data sheet: 989 TFLOP/s bf16 dense, 700 W"),
    "h100-pcie": Device(
        756e12, 350.0, 2.5, 0.40, "NVIDIA H100 PCIe data sheet: 756 TFLOP/s bf16 dense, 350 W"
    ),
    "a100": Device(312e12, 400.0, 1.8, 0.45, "NVIDIA A100 SXM data sheet: 312 TFLOP/s bf16 dense, 400 W"),
    "l40s": Device(362e12, 350.0, 1.0, 0.35, "NVIDIA L40S data sheet: 362 TFLOP/s bf16 dense, 350 W"),
    "a10": Device(125e12, 150.0, 0.75, 0.35, "NVIDIA A10 data sheet: 125 TFLOP/s bf16 dense, 150 W"),
    "mi300x": Device(1307e12, 750.0, 3.0, 0.30, "AMD MI300X data sheet: 1307 TFLOP/s bf16 dense, 750 W"),
    "rtx4090": Device(165e12, 450.0, 0.5, 0.40, "NVIDIA Ada white paper: 165 TFLOP/s bf16 dense, 450 W"),
    "rtx3090": Device(
        71e12, 350.0, 0.25, 0.40, "NVIDIA Ampere GA102 white paper: 71 TFLOP/s bf16 dense, 350 W"
    ),
    "cpu": Device(5e10, 10.0, 0.04, 0.20, "assumed: one core, 50 GFLOP/s float32, 10 W"),
}
"""By name; `h100x8`, `8xh100` and `8 h100` are eight of one."""

ASSUMED = "price and utilisation are assumed"

_NAME = re.compile(
    r"(?:(?P<first>\d+)\s*[x×*]?\s*)?(?P<name>[a-z][a-z0-9_\- ]*?)(?:\s*[x×*]\s*(?P<last>\d+))?"
)


def hardware(
    name: str | Hardware,
    *,
    price: float | None = None,
    currency: str | None = None,
    watts: float | None = None,
    utilisation: float | None = None,
    peak_flops: float | None = None,
) -> Hardware:
    """Hardware by name.

    Args:
        name: of the table, with a number of devices: "h100x8", "8xh100", "a100". Another name needs `peak_flops`.
        price: of one device for an hour, in `currency`.
        currency: of the price, e.g. "EUR" (default "USD"); needs `price`, for no rates of exchange are known here.
        watts: of one device under load.
        utilisation: share of the peak that training reaches.
        peak_flops: dense FLOP/s of one device.

    Raises:
        PlanError: not in the table and without `peak_flops`, or a currency without a price.
        ValueError: a value out of range.
    """
    given = {"watts": watts, "utilisation": utilisation, "peak_flops": peak_flops, "price": price}
    known: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    if currency is not None:
        code = code_of(currency)
        if code is None:
            raise PlanError(f"currency {currency!r} is unknown: use a code such as USD or EUR")
        own = name.currency if isinstance(name, Hardware) else "USD"
        if price is None and code != own:
            raise PlanError(
                f"prices of the table are in {own}: give price=… of one device for an hour in {code}"
            )
        known["currency"] = code
    if isinstance(name, Hardware):
        return replace(name, **known)
    asked = (
        re.sub(r"^(nvidia|amd|geforce)\s+", "", name.strip().lower())
        .replace("rtx ", "rtx")
        .replace("rtx", "rt_")
    )
    match = _NAME.fullmatch(asked)
    if match is None or (match["first"] and match["last"]):
        raise PlanError(
            f"hardware {name!r} is not understood: write it as h100x8, or one of {', '.join(DEVICES)}"
        )
    devices = int(match["first"] or match["last"] or 1)
    if devices < 1:
        raise PlanError(f"hardware {name!r} has no device: write it as h100x8")
    key = match["name"].strip().replace(" ", "-").replace("rt_", "rtx")
    device = DEVICES.get(key) or DEVICES.get(key.replace("-", "")) or DEVICES.get(key.removesuffix("-sxm"))
    if device is None:
        if peak_flops is None:
            near = difflib.get_close_matches(key, DEVICES, n=1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            raise PlanError(
                f"hardware {key!r} is not in the table ({', '.join(DEVICES)}){hint}; give peak_flops=… of one device"
            )
        device = Device(peak_flops, 0.0, 0.0, 0.4, "given")
    made = Hardware(
        name=name.strip(),
        devices=devices,
        peak_flops=device.peak,
        utilisation=device.utilisation,
        watts=device.watts,
        price=device.price,
        source=f"{device.source}; {ASSUMED}",
    )
    return replace(made, **known)
