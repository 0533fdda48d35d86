"""All of ``train`` on one machine: from a bfloat16 store to the JSON files, against a scikit-learn loop."""
