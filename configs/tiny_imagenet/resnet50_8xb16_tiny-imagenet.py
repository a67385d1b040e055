"""Unpruned: ResNet-50 on Tiny-ImageNet (64x64), trained as ResNet-18."""

_base_ = './resnet18_8xb16_tiny-imagenet.py'

model = dict(backbone=dict(depth=50), head=dict(in_channels=2048))
