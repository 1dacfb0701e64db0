"""An interpreter of the PTX that Triton emits for sm_80: runs programs on the CPU, finds races, counts traffic.

``parser`` reads a kernel; ``machine`` runs one program (CTA) after the other, all threads of one at once in numpy;
``arithmetic``, ``transfers`` and ``tensor_cores`` are its instructions; ``memory`` checks and counts every access.

What it finds: a byte of shared memory that two warps touch between two barriers, one of them writing; a byte of global
memory that two programs touch, one of them writing; an access outside of a tensor or not aligned; data used before it
has arrived (shared memory is full of NaN until a copy is waited for). What it does not model: time, the order of lanes
within a warp, and caches. Sums of tensor cores are cut towards zero, once for each ``mma``.
"""
