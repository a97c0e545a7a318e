"""A classifier unlike torchvision's: functional operations, a shared layer, no Sequential."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trompe.data.preprocessing import Preprocessing

preprocessing = Preprocessing(
    resize=64, crop=64, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), min_area=0.6
)


class Unseen(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.entry = nn.Conv2d(3, 24, 5, stride=2, padding=2, bias=False)
        self.entry_norm = nn.BatchNorm2d(24)
        self.narrow = nn.Conv2d(24, 24, 1)
        self.wide = nn.Conv2d(24, 24, 3, padding=1)
        self.shared = nn.Conv2d(48, 48, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(48)
        self.second_norm = nn.BatchNorm2d(48)
        self.middle = nn.Conv2d(48, 48, 3, padding=1, bias=False)
        self.middle_norm = nn.BatchNorm2d(48)
        self.exit = nn.Conv2d(48, 96, 3, padding=1, bias=False)
        self.exit_norm = nn.BatchNorm2d(96)
        self.head = nn.Linear(96, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.entry_norm(self.entry(x)))
        x = F.avg_pool2d(torch.cat([F.relu(self.narrow(x)), self.wide(x).relu()], 1), 2)
        x = x + F.relu(self.first_norm(self.shared(x)))
        x = F.max_pool2d(torch.relu_(x + self.second_norm(self.shared(x))), 2)
        x = x + F.relu(self.middle_norm(self.middle(x)))
        x = torch.relu_(self.exit_norm(self.exit(x)))
        return self.head(x.mean((2, 3)))


def unseen(num_classes: int = 8) -> Unseen:
    return Unseen(num_classes)
