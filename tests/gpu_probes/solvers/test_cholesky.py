import numpy as np
import pytest
import torch

from gpu_probes.solvers.cholesky import factorise


@pytest.mark.parametrize("n", [1, 95, 96, 97, 300])
def test_factor_is_that_of_lapack(n: int, device: str):
    features = np.random.default_rng(n).standard_normal((2, 2 * n, n))
    gram = features.transpose(0, 2, 1) @ features
    factor = factorise(torch.tensor(np.tril(gram), device=device), 0.5)
    reference = np.linalg.cholesky(gram + 0.5 * np.eye(n))
    np.testing.assert_allclose(factor.lower.tril().cpu().numpy(), reference, atol=1e-12 * np.abs(reference).max())
    right_side = np.random.default_rng(0).standard_normal((2, n, 3))
    solution = factor.solve(torch.tensor(right_side, device=device)).cpu().numpy()
    np.testing.assert_allclose(solution, np.linalg.solve(gram + 0.5 * np.eye(n), right_side), rtol=1e-9, atol=1e-12)


def test_a_matrix_without_a_factor_harms_no_other():
    matrix = torch.stack([torch.eye(200, dtype=torch.float64), torch.eye(200, dtype=torch.float64)])
    matrix[0, 150, 150] = -1
    factor = factorise(matrix, 0.5)
    assert factor.singular.tolist() == [True, False]
    solution = factor.solve(torch.ones(2, 200, 1, dtype=torch.float64))
    assert solution[0].isnan().all()
    torch.testing.assert_close(solution[1], torch.full((200, 1), 1 / 1.5, dtype=torch.float64))
