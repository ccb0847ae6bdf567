import pytest
import torch

from imm.model import ImageFlow, ImageFlowConfig, PatchNetwork, null_labels


def model(**more):
    torch.manual_seed(0)
    fields = {
        "channels": 2, "height": 4, "width_pixels": 8, "patch": 2, "num_classes": 3, "shift": -0.2, "scale": 0.7,
        "backbone": {"width": 16, "depth": 1, "heads": 2},
    }  # fmt: skip
    made = ImageFlow(ImageFlowConfig(**{**fields, **more}))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def test_patches_keep_pixels_in_their_places():
    """A network that passes its states through is the identity on images."""
    network = PatchNetwork(model().config)
    seen = []
    network.backbone.forward = lambda states, t, s, context: seen.append(states) or states
    x = torch.arange(2 * 2 * 4 * 8.0).reshape(2, 2, 4, 8)
    assert torch.equal(network(x, None, None), x)
    assert seen[0].shape == (2, 8, 8)
    assert torch.equal(seen[0][0, 1], x[0, :, 0:2, 2:4].flatten())  # the second patch of the first row


def test_images_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="4×8 do not divide into patches of 3"):
        model(patch=3)


def test_the_class_is_heard_and_none_is_a_class_of_its_own():
    flow = model()
    x, t = torch.randn(2, 2, 4, 8), torch.tensor([0.5, 0.5])
    by = [flow(x, t, t, flow.condition(torch.tensor([k, k]))) for k in range(3)]
    by.append(flow(x, t, t, flow.condition(null_labels(flow, 2, x.device))))
    assert all(not torch.allclose(a, b, atol=1e-3) for i, a in enumerate(by) for b in by[:i])
    assert model(num_classes=0).condition(torch.tensor([1])) is None


def test_states_become_bytes_by_the_models_own_scaling():
    flow = model()
    x = torch.zeros(1, 2, 4, 8)
    assert flow.images(x)[0, 0, 0, 0] == round((1 - 0.2) * 127.5)


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_saving_and_loading_changes_nothing(tmp_path, path):
    flow = model(path=path, parameterisation="simple-edm")
    flow.save_pretrained(tmp_path)
    again = ImageFlow.from_pretrained(tmp_path)
    x, t = torch.randn(2, 2, 4, 8), torch.tensor([0.3, 0.9])
    context = flow.condition(torch.tensor([0, 2]))
    assert torch.equal(flow.map.jump(x, t, t / 3, context), again.map.jump(x, t, t / 3, context))
    assert again.map.path == flow.map.path and again.scaling == flow.scaling
