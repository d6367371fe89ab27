"""Find and change the slots in which a shared library on Linux holds the addresses of imported functions.

A call to a function of another library goes through a slot that the dynamic linker fills in. The tables that name the
slots are read from the file; in memory the slots are at the same offset from the library's base.

Format: ELF-64 little-endian, System V ABI; relocation types of the psABI supplements for x86-64 and AArch64.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# Relocation types that put a function's address into a slot: GLOB_DAT and JUMP_SLOT, by machine.
_MACHINES = {62: (6, 7), 183: (1025, 1026)}
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_PLTRELSZ, _DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_RELASZ, _DT_JMPREL = 2, 5, 6, 7, 8, 23
_HEADER = np.dtype([("type", "<u4"), ("flags", "<u4"), ("offset", "<u8"), ("address", "<u8"), ("physical", "<u8")])
_PROGRAM = np.dtype([*_HEADER.descr, ("file_size", "<u8"), ("memory_size", "<u8"), ("align", "<u8")])
_DYNAMIC = np.dtype([("tag", "<i8"), ("value", "<u8")])
_RELOCATION = np.dtype([("offset", "<u8"), ("info", "<u8"), ("addend", "<i8")])
_SYMBOL_BYTES = 24


@dataclass(frozen=True)
class Mapping:
    """A memory mapping of a file.

    Attributes:
        start, stop: its addresses.
        permissions: as in /proc/self/maps, such as "rw-p".
        offset: offset in the file at which it begins.
    """

    start: int
    stop: int
    permissions: str
    offset: int


def find_slots(file: Path, names: tuple[str, ...]) -> dict[str, list[int]]:
    """Return the slots of imported functions in a shared library, as offsets from its base.

    Args:
        file: the library, for this machine or another.
        names: names of the functions.
    Returns:
        The slots by name; a function that is not imported has none.
    Raises:
        ValueError: not a 64-bit shared library for a supported machine.
    """
    content = np.memmap(file, dtype=np.uint8, mode="r")
    if bytes(content[:6]) != b"\x7fELF\x02\x01":
        raise ValueError(f"{file} is not a little-endian ELF-64 file")
    machine = int(content[18:20].view("<u2")[0])
    if machine not in _MACHINES:
        raise ValueError(f"{file} is for machine {machine}; supported are {', '.join(map(str, _MACHINES))}")
    start, count = int(content[32:40].view("<u8")[0]), int(content[56:58].view("<u2")[0])
    programs = content[start : start + count * _PROGRAM.itemsize].view(_PROGRAM)
    loads = programs[programs["type"] == _PT_LOAD]
    (dynamic,) = programs[programs["type"] == _PT_DYNAMIC]
    entries = content[dynamic["offset"] : dynamic["offset"] + dynamic["file_size"]].view(_DYNAMIC)
    tags = {int(entry["tag"]): int(entry["value"]) for entry in entries}

    def in_file(address: int) -> int:
        inside = (loads["address"] <= address) & (address < loads["address"] + loads["file_size"])
        (load,) = loads[inside]
        return int(address - load["address"] + load["offset"])

    symbols, strings = in_file(tags[_DT_SYMTAB]), in_file(tags[_DT_STRTAB])
    slots: dict[str, list[int]] = {name: [] for name in names}
    wanted = {name.encode(): name for name in names}
    for table, size in ((_DT_JMPREL, _DT_PLTRELSZ), (_DT_RELA, _DT_RELASZ)):
        if table not in tags:
            continue
        begin = in_file(tags[table])
        relocations = content[begin : begin + tags[size]].view(_RELOCATION)
        for relocation in relocations[np.isin(relocations["info"] & 0xFFFFFFFF, _MACHINES[machine])]:
            symbol = symbols + int(relocation["info"] >> 32) * _SYMBOL_BYTES
            text = strings + int(content[symbol : symbol + 4].view("<u4")[0])
            name = bytes(content[text : text + 64]).partition(b"\0")[0]
            if name in wanted:
                slots[wanted[name]].append(int(relocation["offset"]))
    return slots


def find_mappings(file: Path) -> list[Mapping]:
    """Return this process's mappings of a file, by address; may be empty."""
    mappings = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        span, permissions, offset, _, _, *path = line.split(maxsplit=5)
        if path and path[0] == str(file):
            start, stop = (int(part, 16) for part in span.split("-"))
            mappings.append(Mapping(start, stop, permissions, int(offset, 16)))
    return mappings


def read_slot(address: int) -> int:
    """Return the address in a slot of this process."""
    return int(ctypes.c_uint64.from_address(address).value)


def write_slot(address: int, value: int, mappings: list[Mapping]) -> None:
    """Write a function's address into a slot of this process; a read-only page is made writable meanwhile.

    Args:
        address: address of the slot.
        value: address of the function.
        mappings: mappings of the library that the slot belongs to.
    Raises:
        OSError: the address is not in the library, or its page cannot be made writable.
    """
    home = next((mapping for mapping in mappings if mapping.start <= address < mapping.stop), None)
    if home is None or address % 8:
        raise OSError(f"{address:#x} is not a slot of the library")
    is_read_only = "w" not in home.permissions
    if is_read_only:
        _protect(address, mmap.PROT_READ | mmap.PROT_WRITE)
    # One aligned eight-byte store: a concurrent call reaches either the old function or the new one.
    ctypes.c_uint64.from_address(address).value = value
    if is_read_only:
        _protect(address, mmap.PROT_READ)


def _protect(address: int, protection: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    page = address // mmap.PAGESIZE * mmap.PAGESIZE
    if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), protection):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), f"page at {page:#x}")
