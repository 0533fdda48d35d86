"""A store that is written, read and resumed while the machine fails: what is promised, counted case by case.

========== ==========================================================================================================
calls      every change that is made to a store's files, recorded; one of them made to fail, or to be the last
disk       what a disk may hold after a power loss, from the recorded calls
job        the work: create a small store or take it up again, fill it; what is right to read from it
aftermath  what must hold after any fault
kills      SIGKILL at every call, and at random times
extraction SIGKILL of ``probesweep extract``
failing    calls that fail, and a file size limit of the kernel
power      power loss at every call
damage     flipped bytes, truncated and missing files
objects    all of that on an object store
suite      the parts and how much of each is run
command    ``python -m benchmarks faults``
========== ==========================================================================================================
"""
