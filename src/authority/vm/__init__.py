"""A run in a machine of its own: images, the hypervisor and its jail, saved states."""

from authority.vm.acceleration import not_ready
from authority.vm.machine import Line, Machine, furnish, start
from authority.vm.preparation import Images, Prepared, images, prepare
from authority.vm.steps import Step, Tell, to_loop

__all__ = [
    "Images",
    "Line",
    "Machine",
    "Prepared",
    "Step",
    "Tell",
    "furnish",
    "images",
    "not_ready",
    "prepare",
    "start",
    "to_loop",
]
