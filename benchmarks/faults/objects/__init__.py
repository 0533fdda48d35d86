"""The same job on a real object store, behind a proxy that makes mistakes.

======== ==============================================================================================================
place    the server, and the job as it is done there
child    the job in a process of its own, which can be killed and stopped
requests every request of the job struck in turn: killed, not answered, answered with something else; a longer outage
server   the server killed while it takes an object
writers  two writers of one store
damage   objects that changed, are gone or hold something else
suite    the parts and how much of each is run
======== ==============================================================================================================
"""
