"""Success rates: sampled answers, judged, as columns of a dataset."""
