"""The roofline: seconds below which a device cannot prefill a prompt or decode a token, whatever the program.

Bytes to move over the memory's bandwidth, operations over the peak, whichever takes longer. Per step of B sequences
behind n tokens, with W bytes of weights, P parameters that every token is multiplied with and Q of the output head:

    decode   bytes  W + B·(held + 2·L·G·d·2)                          held: the method's KV bytes on the device
             link   B·(held in host memory)                           over the way to the host, where it is known
             FLOPs  B·(2·(P + Q) + 4·L·H·d·kept)                      kept: slots that are attended to
    prefill  bytes  W + 2·L·G·d·2·n
             FLOPs  2·(P·n + Q) + 2·L·H·d·n·(n + 1)                   logits of the last token only, causal attention

P counts every parameter but the input embedding, which is looked up, and the head; those of norms and biases are in it
and do not matter. A method may do less than is counted here: sparse attention over the prompt, or a step that reads a
part of what is held. Such a method may lie below these figures, which are then none for it (the engine's speed.py).

Bandwidths and peaks (16 bits, tensor cores, dense, sums in float32) are those of NVIDIA's data sheets: "NVIDIA H100
Tensor Core GPU" and "NVIDIA H200 Tensor Core GPU", which give peaks with sparsity, twice the dense ones; "NVIDIA A100
Tensor Core GPU", "NVIDIA L4 Tensor Core GPU", "NVIDIA L40S"; for RTX 4090 and 3090 the white papers "NVIDIA Ada GPU
Architecture" and "NVIDIA Ampere GA102 GPU Architecture". Links: PCI Express in one direction, generation 5 or 4 with 16
lanes. All are upper bounds: no program reaches them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvcheck.core.errors import KvcheckError, MethodUnsupported

if TYPE_CHECKING:
    from kvcheck.cache.shape import ModelShape
    from kvcheck.models import LoadedModel

PCIE5, PCIE4 = 64e9, 32e9
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class Device:
    """bandwidth: bytes/s of its memory. peak: FLOP/s. link: bytes/s to or from host memory, None where not known."""

    bandwidth: float
    peak: float
    link: float | None = None

    def __post_init__(self) -> None:
        """Raise KvcheckError unless both are above 0."""
        if not (self.bandwidth > 0 and self.peak > 0):
            raise KvcheckError(
                f"a device of {self.bandwidth:g} bytes/s and {self.peak:g} FLOP/s does nothing",
                "bandwidth in GB/s and peak in TFLOP/s, such as --bandwidth 3350 --peak 989",
            )

    def __str__(self) -> str:
        return f"{self.bandwidth / 1e9:g} GB/s, {self.peak / 1e12:g} TFLOP/s"


DEVICES: Mapping[str, Device] = {
    "NVIDIA H100 80GB HBM3": Device(3.35e12, 989e12, PCIE5),
    "NVIDIA H100 PCIe": Device(2.0e12, 756e12, PCIE5),
    "NVIDIA H100 NVL": Device(3.9e12, 835e12, PCIE5),
    "NVIDIA H200": Device(4.8e12, 989e12, PCIE5),
    "NVIDIA H200 NVL": Device(4.8e12, 835e12, PCIE5),
    "NVIDIA A100-SXM4-80GB": Device(2.039e12, 312e12, PCIE4),
    "NVIDIA A100 80GB PCIe": Device(1.935e12, 312e12, PCIE4),
    "NVIDIA A100-SXM4-40GB": Device(1.555e12, 312e12, PCIE4),
    "NVIDIA A100-PCIE-40GB": Device(1.555e12, 312e12, PCIE4),
    "NVIDIA L4": Device(300e9, 121e12, PCIE4),
    "NVIDIA L40S": Device(864e9, 362e12, PCIE4),
    "NVIDIA GeForce RTX 4090": Device(1.008e12, 165.2e12, PCIE4),
    "NVIDIA GeForce RTX 3090": Device(936e9, 71e12, PCIE4),
}
"""By the name that torch and nvidia-smi give."""


def device_of(name: str, bandwidth: float | None = None, peak: float | None = None) -> Device:
    """The figures of a device by its name, "" for a CPU; bandwidth (GB/s) and peak (TFLOP/s) go before the table.

    Raises KvcheckError where one is missing: nothing is guessed.
    """
    known = DEVICES.get(name)
    if bandwidth is not None and peak is not None:
        return Device(bandwidth * 1e9, peak * 1e12, None if known is None else known.link)
    if bandwidth is not None or peak is not None:
        raise KvcheckError("one of --bandwidth and --peak is missing", "give both, such as --bandwidth 3350 --peak 989")
    if known is None:
        raise KvcheckError(
            f"no bandwidth and peak are known for {name or 'a CPU'}",
            "give them: --bandwidth GB/s --peak TFLOP/s (16 bits, dense)",
        )
    return known


@dataclass(frozen=True)
class Work:
    """bytes: to and from the device's memory. flops: additions and multiplications. away: bytes over the link."""

    bytes: float
    flops: float
    away: float = 0.0

    def seconds(self, device: Device) -> float:
        """The least time: what takes longest alone, all else at the same time."""
        link = self.away / device.link if device.link is not None else 0.0
        return max(self.bytes / device.bandwidth, self.flops / device.peak, link)


@dataclass(frozen=True)
class Model:
    """What a model costs. weights: bytes that a forward reads. body, head: parameters per token and per logit row."""

    shape: ModelShape
    weights: int
    body: int
    head: int

    @classmethod
    def of(cls, loaded: LoadedModel) -> Model:
        """Count the parameters of a LoadedModel; of one that sees, those of its language model.

        Raises MethodUnsupported where the formulae do not hold: experts, of which a token passes few, and models with
        more than full attention.
        """
        model = loaded.model
        config = model.config.get_text_config()
        if loaded.states is not None:
            raise MethodUnsupported("the formulae are of models with full attention only")
        if any((getattr(config, name, None) or 0) > 1 for name in EXPERTS):
            raise MethodUnsupported("the formulae are of models without experts")
        if loaded.shape.latent:
            raise MethodUnsupported("the formulae are of models that cache keys and values, not latents")
        looked_up, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        parts = {id(part): part for part in (*model.get_decoder().parameters(), output)}
        if output is not looked_up:
            parts.pop(id(looked_up))
        body = sum(part.numel() for part in parts.values()) - output.numel()
        return cls(loaded.shape, sum(part.nbytes for part in parts.values()), body, output.numel())

    def prefill(self, tokens: int) -> Work:
        """A dense prompt of n tokens, and the logits behind it."""
        shape = self.shape
        attention = 2 * shape.layers * shape.heads * shape.head_dim * tokens * (tokens + 1)
        written = shape.dense_bytes(1, tokens)
        return Work(self.weights + written, 2 * (self.body * tokens + self.head) + attention)

    def decode(self, batch: int, held: float, kept: float, away: float = 0.0) -> Work:
        """One token of each of `batch` sequences that hold so many bytes and slots (`held`, `kept`, `away`) each."""
        shape = self.shape
        attention = 4 * shape.layers * shape.heads * shape.head_dim * kept
        moved = self.weights + batch * (held + shape.dense_bytes(1, 1))
        return Work(moved, batch * (2 * (self.body + self.head) + attention), batch * away)
