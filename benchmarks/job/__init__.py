"""The whole of ``train`` on one machine: from a store of bfloat16 to the JSON files, beside a scikit-learn loop."""
