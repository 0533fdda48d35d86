"""Write and read speed of the activation store against zarr-python, TensorStore and plain files."""
