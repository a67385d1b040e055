"""Unpruned: ResNet-18 on CIFAR-100, trained as mmpretrain does ResNet-50."""

_base_ = 'mmpretrain::resnet/resnet50_8xb16_cifar100.py'

model = dict(backbone=dict(depth=18), head=dict(in_channels=512))
