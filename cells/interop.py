"""What torch's other tools find in our modules: one node for torch.fx, advice for TorchScript and quantisation."""

from __future__ import annotations

import warnings
from typing import Any, NoReturn, cast

from torch.fx import Proxy, Tracer


class Interop:
    """Mixed into holdfast's recurrent modules and cells, after torch.nn's base: convert could not swap classes else."""

    def _as_one_node(self, input: Proxy, second: Any, options: dict[str, Any]) -> Any:
        """Stay a single call in a torch.fx graph, which fx grants of itself only to modules under torch.nn."""
        tracer = cast(Tracer, input.tracer)
        return tracer.create_proxy("call_module", tracer.path_of_module(cast(Any, self)), (input, second), options)

    def _unexpected(self, argument: str) -> str:
        """What is wrong with an argument that forward does not know, in Python's words, and what may be behind it."""
        return (
            f"forward() got an unexpected keyword argument {argument!r}. Code that asks isinstance for torch.nn's "
            f"class may have taken {_named(self)} for one of its own, as torchrl's LSTMModule does: "
            "holdfast.convert(model, keep_isinstance=True) makes it torch.nn's as well"
        )

    def __prepare_scriptable__(self) -> NoReturn:
        """torch.jit.script asks for this of each module before it compiles any.

        Not the torch.nn module itself: TorchScript would put it into the caller's model for good.
        """
        raise RuntimeError(
            f"torch.jit.script does not take {_named(self)}: call holdfast.to_torch(model) first, it takes torch.nn's"
        )

    @property
    def qconfig(self) -> Any:
        """How torch.ao.quantization is to treat this module; set by it."""
        if "qconfig" not in self.__dict__:
            raise AttributeError(f"{_named(self)} has no qconfig")
        return self.__dict__["qconfig"]

    @qconfig.setter
    def qconfig(self, value: Any) -> None:
        # quantize_dynamic and the like set it on every module and then swap the classes that they know.
        warnings.warn(
            f"torch.ao.quantization knows torch.nn's classes and leaves {_named(self)} as it is, in floating point: "
            "call holdfast.to_torch(model) before quantize_dynamic",
            stacklevel=4,
        )
        self.__dict__["qconfig"] = value

    @qconfig.deleter
    def qconfig(self) -> None:
        del self.__dict__["qconfig"]

    @property
    def ft_compute_sample_grad(self) -> Any:
        """Opacus's function for the gradients of single examples; set by opacus.GradSampleModule, and refused here.

        Opacus's validator asks for the exact class and lets ours pass; in the backward pass it would then multiply the
        module's tuple of results by a tensor.
        """
        raise AttributeError(f"{_named(self)} has no ft_compute_sample_grad")

    @ft_compute_sample_grad.setter
    def ft_compute_sample_grad(self, value: Any) -> None:
        raise NotImplementedError(
            f"opacus has no per-sample gradients for {_named(self)}: call holdfast.to_torch(model), "
            "then opacus.validators.ModuleValidator.fix(model), which puts its own layers in"
        )


def _named(module: object) -> str:
    return f"holdfast.{type(module).__name__}"
