"""The old ``.pt`` files: read, converted and written."""
