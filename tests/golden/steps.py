"""What the scripts in the folders beside make alike: a step's loss, and ten steps of AdamW."""

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

BCE_WEIGHT = 0.1
STEPS = 10


def step_golden(model, forward, teacher, groups):
    """The loss of `forward`'s scores, its parts, and how steps change it; and its gradients."""
    teacher = torch.tensor(teacher)
    scores = forward()
    loss = loss_of(scores, teacher, groups)
    model.zero_grad()
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    golden = {
        "groups": groups,
        "teacher_scores": teacher.tolist(),
        "bce_weight": BCE_WEIGHT,
        "margin_mse": margin_mse(scores, teacher, groups).item(),
        "bce": binary_cross_entropy_with_logits(scores, teacher.sigmoid()).item(),
        "loss": loss.item(),
        "gradient_norm": torch.cat([gradient.flatten() for gradient in gradients.values()]).norm().item(),
        "adamw_losses": adamw_losses(model, forward, teacher, groups, clip=None),
        "adamw_clipped_losses": adamw_losses(model, forward, teacher, groups, clip=1.0),
    }
    return golden, gradients


def loss_of(scores, teacher, groups):
    margin = margin_mse(scores, teacher, groups)
    return margin + BCE_WEIGHT * binary_cross_entropy_with_logits(scores, teacher.sigmoid())


def margin_mse(scores, teacher, groups):
    """Mean over a group's pairs with teacher_i > teacher_j, then over the groups that have any."""
    losses = []
    for group in sorted(set(groups)):
        members = [i for i, g in enumerate(groups) if g == group]
        errors = [
            ((scores[i] - scores[j]) - (teacher[i] - teacher[j])) ** 2
            for i in members
            for j in members
            if teacher[i] > teacher[j]
        ]
        if errors:
            losses.append(torch.stack(errors).mean())
    return torch.stack(losses).mean()


def adamw_losses(model, forward, teacher, groups, clip):
    """The loss before each of the steps and after the last. Leaves the model as it was."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    decayed, undecayed = [], []
    for name, parameter in model.named_parameters():
        plain = name.endswith(".bias") or "norm" in name.lower()
        (undecayed if plain else decayed).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": undecayed, "weight_decay": 0.0}],
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
    )
    losses = []
    for step in range(STEPS + 1):
        loss = loss_of(forward(), teacher, groups)
        losses.append(loss.item())
        if step < STEPS:
            optimizer.zero_grad()
            loss.backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
    model.load_state_dict(before)
    return losses
