"""Two networks that train each other, each with an optimizer of its own; and all that they remember."""

from collections.abc import Mapping
from typing import Any

import torch
from settings import GANSettings
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.optim import Adam

import smkit


class GAN:
    def __init__(self, hp: GANSettings, placement: smkit.Placement) -> None:
        self.hp, self.placement = hp, placement
        generator = [nn.Linear(hp.codes, hp.hidden), nn.ReLU(), nn.Linear(hp.hidden, 64), nn.Sigmoid()]
        critic = [nn.Linear(64, hp.hidden), nn.LeakyReLU(0.2), nn.Linear(hp.hidden, 1)]
        self.generator = nn.Sequential(*generator).to(placement.device)
        self.critic = nn.Sequential(*critic).to(placement.device)
        self.generator_optimizer = Adam(self.generator.parameters(), hp.learning_rate, betas=(0.5, 0.999))
        self.critic_optimizer = Adam(self.critic.parameters(), hp.learning_rate, betas=(0.5, 0.999))
        self.noise = torch.Generator(placement.device).manual_seed(hp.seed)  # its own, so that its state can be saved

    def step(self, images: Tensor) -> dict[str, Tensor]:
        """Train both networks on real images `(N, 64)`, and return their losses."""
        with self.placement.autocast():
            codes = torch.randn(len(images), self.hp.codes, generator=self.noise, device=images.device)
            drawn = self.generator(codes)
            critic_loss = softplus(-self.critic(images)).mean() + softplus(self.critic(drawn.detach())).mean()
        self._descend(critic_loss, self.critic_optimizer, self.critic)
        with self.placement.autocast():
            generator_loss = softplus(-self.critic(drawn)).mean()
        self._descend(generator_loss, self.generator_optimizer, self.generator)
        return {"train/critic_loss": critic_loss, "train/generator_loss": generator_loss}

    def _descend(self, loss: Tensor, optimizer: Adam, model: nn.Module) -> None:
        optimizer.zero_grad()
        self.placement.backward(loss)
        self.placement.step(optimizer, model.parameters(), self.hp.max_grad_norm)

    def _parts(self) -> dict[str, Any]:
        names = ("generator", "critic", "generator_optimizer", "critic_optimizer", "placement")
        return {name: getattr(self, name) for name in names}

    def state_dict(self) -> dict[str, Any]:
        return {"noise": self.noise.get_state(), **{name: part.state_dict() for name, part in self._parts().items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.noise.set_state(state["noise"])
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
