"""A run in a machine of its own: images, the hypervisor and its jail, saved states."""

from authority.vm.acceleration import not_ready
from authority.vm.machine import Line, Machine, furnish, start
from authority.vm.preparation import Images, Prepared, images, prepare

__all__ = [
    "Images",
    "Line",
    "Machine",
    "Prepared",
    "furnish",
    "images",
    "not_ready",
    "prepare",
    "start",
]
