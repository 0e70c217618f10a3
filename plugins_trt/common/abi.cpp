// Sizes and places of everything that crosses the border to TensorRT: with its headers and with ours.
#include "trt_abi.h"

namespace {

using namespace nvinfer1;

static_assert(sizeof(Dims) == 72 && offsetof(Dims, d) == 8);
static_assert(sizeof(DimsExprs) == 72 && offsetof(DimsExprs, d) == 8);
static_assert(sizeof(PluginTensorDesc) == 88 && offsetof(PluginTensorDesc, type) == 72);
static_assert(offsetof(PluginTensorDesc, format) == 76 && offsetof(PluginTensorDesc, scale) == 80);
static_assert(sizeof(DynamicPluginTensorDesc) == 304 && offsetof(DynamicPluginTensorDesc, min) == 88);
static_assert(offsetof(DynamicPluginTensorDesc, max) == 160 && offsetof(DynamicPluginTensorDesc, opt) == 232);
static_assert(sizeof(PluginField) == 24 && offsetof(PluginField, type) == 16 && offsetof(PluginField, length) == 20);
static_assert(sizeof(PluginFieldCollection) == 16 && offsetof(PluginFieldCollection, fields) == 8);
static_assert(sizeof(InterfaceInfo) == 16);
static_assert(static_cast<int>(DataType::kBF16) == 7 && static_cast<int>(DataType::kINT8) == 2);
static_assert(static_cast<int>(PluginFieldType::kINT32) == 5 && static_cast<int>(PluginFieldType::kINT64) == 10);
static_assert(static_cast<int>(PluginCapabilityType::kRUNTIME) == 2 && static_cast<int>(TensorFormat::kLINEAR) == 0);

}  // namespace
